"""Whether DeepSpeed can start here: a group of one process, an engine, one step.

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
    """Yield one line after one step of a linear map under the configuration's ZeRO stage.

    Raises: whatever torch and DeepSpeed do.
    """
    begin_s = time.monotonic()
    import deepspeed
    import torch

    from fitb.base.world import World
    from fitb.config.parser import parse
    from fitb.training.zero import deepspeed_config, start_distributed

    config = parse(Config, "fitb train", ["--run_dir", RUN_DIR, *flags])
    config = dataclasses.replace(config, global_batch=_ROWS, micro_batch=_ROWS)
    if not torch.cuda.is_available():  # which says nothing of the hosts that will train
        config = dataclasses.replace(config, precision="fp32")
    os.environ |= World().env("127.0.0.1", 0)
    device = start_distributed(config, World())
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
    found = f"{deepspeed.__version__}, ZeRO {stage}, {config.precision} on {device}: one step,"
    found += f" {took_s:.0f} s from import to end"
    if not torch.isfinite(loss):
        yield Check("bad", "deepspeed", f"{found}, and the loss is {float(loss):g}", "ds_report")
        return
    yield Check("ok", "deepspeed", found)


if __name__ == "__main__":
    emit(look(sys.argv[1:]), "deepspeed")
