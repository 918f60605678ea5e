"""DeepSpeed check: a process group of one, an engine, one optimiser step.

`python -m fitb.tools.doctor.engine [flags of fitb train]` is what `fitb doctor --deep` starts.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence

from fitb.config import Config
from fitb.tools.doctor.check import Check
from fitb.tools.doctor.configuration import RUN_DIR
from fitb.tools.doctor.worker import emit

_ROWS = 2


def look(flags: Sequence[str]) -> Iterator[Check]:
    """Train a linear layer for one step under the configuration's ZeRO stage.

    Raises: any error of torch or DeepSpeed.
    """
    begin_s = time.monotonic()
    import deepspeed
    import torch

    from fitb.base.world import World
    from fitb.config.parser import parse
    from fitb.training.defaults import resolved
    from fitb.training.zero import deepspeed_config, start_distributed

    config = parse(Config, "fitb train", ["--run_dir", RUN_DIR, *flags])
    config = dataclasses.replace(config, global_batch=_ROWS, micro_batch=_ROWS)
    if not torch.cuda.is_available():  # a login node; the training hosts may have GPUs
        config = dataclasses.replace(config, precision="fp32")
    os.environ |= World().env("127.0.0.1", 0)
    device = start_distributed(config, World())
    config = resolved(config, device)
    filled = deepspeed_config(config, World())
    module = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=filled)
    rows = torch.ones(_ROWS, 8, device=device, dtype=next(engine.module.parameters()).dtype)
    loss = engine(rows).float().square().mean()
    engine.backward(loss)
    engine.step()
    took_s = time.monotonic() - begin_s
    stage = filled["zero_optimization"]["stage"]
    found = f"{deepspeed.__version__}, ZeRO {stage}, {config.precision} on {device}: one step in"
    found += f" {took_s:.0f} s, imports included"
    if torch.isfinite(loss):
        yield Check("ok", "deepspeed", found)
    else:
        yield Check("bad", "deepspeed", f"{found}, and the loss is {float(loss):g}", "ds_report")


if __name__ == "__main__":
    emit(look(sys.argv[1:]), "deepspeed")
