"""Data-parallel evaluation: distribute batches over ranks, gather results on rank 0 in order.

A single process does not import torch here.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from fitb.base.errors import ConfigError
from fitb.base.rendezvous import join
from fitb.base.world import World, address_of
from fitb.cluster.slurm import first_host, master_port

T = TypeVar("T")
_TIMEOUT = timedelta(hours=6)  # for ranks that wait for the slowest one
_SETTLE_S = 0.1  # gloo frees the tensors of its last collective after reporting it done


@dataclass(frozen=True)
class Ranks:
    """The ranks of an evaluation.

    Args:
        world: this rank among them.
    """

    world: World

    def share(self, number: int) -> range:
        """Return this rank's share of 0 .. number - 1: every size-th."""
        return range(self.world.rank, number, self.world.size)

    def gathered(self, found: dict[int, T]) -> dict[int, T]:
        """Gather dicts on rank 0 and return their items by ascending key; nothing elsewhere."""
        if self.world.size == 1:
            return dict(sorted(found.items()))
        import torch.distributed as dist

        parts: list[Any] | None = [None] * self.world.size if self.world.is_main else None
        dist.gather_object(found, parts, dst=0)
        return dict(sorted(item for part in parts or () for item in part.items()))

    def given(self, value: T) -> T:
        """Broadcast rank 0's value."""
        box = [value]
        if self.world.size > 1:
            import torch.distributed as dist

            dist.broadcast_object_list(box, src=0)
        return box[0]


@contextlib.contextmanager
def joined(env: Mapping[str, str]) -> Iterator[Ranks]:
    """Initialise a gloo process group of the ranks that torchrun or srun started.

    Args:
        env: environment variables.
    Raises: ConfigError if there are several ranks and the address of rank 0 is unknown.
    """
    world = World.from_env(env)
    if world.size == 1:
        yield Ranks(world)
        return
    import torch.distributed as dist

    os.environ.update(world.env(*_address(env, world)))
    join(world, "gloo", _TIMEOUT)
    try:
        yield Ranks(world)
    finally:
        time.sleep(_SETTLE_S)
        dist.destroy_process_group()


def _address(env: Mapping[str, str], world: World) -> tuple[str, int]:
    """Return host and port of rank 0 from MASTER_ADDR, else from the Slurm step."""
    if "MASTER_ADDR" in env:
        return env["MASTER_ADDR"], int(env.get("MASTER_PORT", "29500"))
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    if hosts is None or "SLURM_JOB_ID" not in env:
        raise ConfigError(
            f"rank {world.rank} of {world.size} has no address of rank 0: neither MASTER_ADDR nor a"
            " Slurm job is set; start with slurm/evaluate.sh, srun or torchrun"
        )
    step = env.get("SLURM_STEP_ID", "0")
    return address_of(first_host(hosts), env), master_port(int(env["SLURM_JOB_ID"]), int(step))
