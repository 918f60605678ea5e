"""What two processes send in one step of real DeepSpeed, beside what `fitb plan` says."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import job
import pytest

from fitb.cluster.local import LocalRun
from fitb.tools.plan import PlanConfig, plan, traffic

COUNT = str(Path(__file__).parent / "traffic.py")


@pytest.mark.parametrize(
    ("precision", "grad_accum"), [("bf16", 1), ("bf16", 4), ("fp32", 4)], ids=str
)
def test_a_step_reduces_once_and_sends_what_the_plan_says(shards, precision, grad_accum):
    command = [sys.executable, COUNT, str(shards), precision, str(grad_accum)]
    with tempfile.TemporaryFile() as output:
        with LocalRun(command, 2, output=output) as run:
            code = run.wait(job.TIMEOUT_S)
        output.seek(0)
        said = output.read().decode()
    assert code == 0, said[-2000:]
    found = json.loads(said.splitlines()[-1])
    planned = traffic(found["trained"], precision, nodes=1, gpus=2)
    reduced, gathered = (
        [size for name, size in found["sent"] if name == kind] for kind in ("reduce", "gather")
    )
    large = [size for size in reduced if size > 1000]
    assert len(large) == 1  # whatever the accumulation
    # DeepSpeed pads a group so that it divides: by less than 64 bytes a rank.
    assert large[0] / 1e6 == pytest.approx(planned.all_reduce_mb, abs=256e-6)
    assert sum(gathered) / 1e6 == pytest.approx(planned.all_gather_mb, abs=256e-6)
    config = PlanConfig(nodes=1, gpus=2, precision=precision, latency_us=1e6)  # a call a second
    assert len(found["sent"]) == round(plan(config).communication_ms / 1000)
