"""One step of real DeepSpeed, and the bytes of each collective of this rank, as JSON.

python traffic.py SHARDS PRECISION GRAD_ACCUM
"""

import json
import os
import sys

import torch
import torch.distributed as dist

from fitb.base.world import World
from fitb.bench.bench_config import StepBenchConfig
from fitb.bench.step import Variant, start
from fitb.config import Geometry
from fitb.training.zero import leave_distributed

COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "all_gather", "reduce_scatter_tensor")


def watch(name: str, sent: list[tuple[str, int]]) -> None:
    call = getattr(dist, name)

    def noted(*args, **settings):
        tensors = [a for a in (*args, *settings.values()) if isinstance(a, torch.Tensor)]
        sent.append((name.split("_")[1], max(t.nbytes for t in tensors)))
        return call(*args, **settings)

    setattr(dist, name, noted)


def main(shards: str, precision: str, grad_accum: str) -> None:
    sent: list[tuple[str, int]] = []
    for name in COLLECTIVES:
        watch(name, sent)
    world = World.from_env(os.environ)
    models = {"teacher": Geometry(4, 64, 128, 4), "student": Geometry(2, 32, 64, 4)}
    sizes = {"micro_batch": 2, "grad_accum": int(grad_accum)}
    device, run = start(StepBenchConfig(precision, 64, shards=shards, **sizes, **models), world)
    variant = Variant(run, False, world, device)
    variant.seconds(1)
    sent.clear()
    variant.seconds(1)
    parameters = variant.engine.objective.parameters()
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    leave_distributed()
    if world.is_main:
        print(json.dumps({"trained": trained, "sent": sent}))


if __name__ == "__main__":
    main(*sys.argv[1:])
