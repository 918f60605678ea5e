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

COUNT = """
import json, os, sys
import torch
import torch.distributed as dist

sent = []

def watched(name):
    call = getattr(dist, name)
    def noted(*args, **settings):
        tensors = [a for a in (*args, *settings.values()) if isinstance(a, torch.Tensor)]
        sent.append((name.split("_")[1], max(t.nbytes for t in tensors)))
        return call(*args, **settings)
    setattr(dist, name, noted)

for name in ("all_reduce", "all_gather_into_tensor", "all_gather", "reduce_scatter_tensor"):
    watched(name)

from fitb.bench.bench_config import StepBenchConfig
from fitb.bench.step import Variant, start
from fitb.config import Geometry
from fitb.training.zero import leave_distributed
from fitb.base.world import World

world = World.from_env(os.environ)
config = StepBenchConfig(sys.argv[2], 64, micro_batch=2, grad_accum=int(sys.argv[3]),
                     shards=sys.argv[1], teacher=Geometry(4, 64, 128, 4),
                     student=Geometry(2, 32, 64, 4))
device, run = start(config, world)
variant = Variant(run, False, world, device)
variant.seconds(1)
sent.clear()
variant.seconds(1)
trained = sum(p.numel() for p in variant.engine.objective.parameters() if p.requires_grad)
leave_distributed()
if world.is_main:
    print(json.dumps({"trained": trained, "sent": sent}))
"""


@pytest.mark.parametrize(
    ("precision", "grad_accum"), [("bf16", 1), ("bf16", 4), ("fp32", 4)], ids=str
)
def test_a_step_reduces_once_and_sends_what_the_plan_says(
    shards: Path, precision: str, grad_accum: int
) -> None:
    command = [sys.executable, "-c", COUNT, str(shards), precision, str(grad_accum)]
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
