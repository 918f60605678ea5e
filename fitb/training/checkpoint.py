"""Sharded checkpoints: every rank writes and hashes its share, and reads what it has hashed itself.

All ranks write into the fence of their attempt and exchange what they wrote; rank 0 reads it back
and commits (rundir/checkpoints.py). A kill at any point leaves the earlier checkpoint the newest
one, and an attempt whose fence is gone cannot commit. On load rank 0 alone chooses.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fitb.base import fsio
from fitb.base.errors import CheckpointError, FitbError, SystemFault
from fitb.base.world import World
from fitb.rundir.checkpoints import (
    FORMAT,
    NewerFormat,
    check_never_saved,
    commit,
    committed,
    prune,
    read_file,
    read_manifest,
)
from fitb.rundir.names import LATEST
from fitb.rundir.ownership import check_owned
from fitb.training.collectives import on_all, on_main

logger = logging.getLogger(__name__)


def save(
    root: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    manifest: dict[str, Any],
    *,
    fence: Path,
    world: World,
    keep_last: int,
    keep_step: int | None = None,
) -> tuple[Path, dict[str, float]]:
    """Commit a checkpoint; all ranks call this at the same step.

    Args:
        root: the checkpoints folder of the run.
        tensors: names and whole tensors, in the same order on every rank; collective.
        manifest: what else to remember; must hold `step`.
        fence: folder of this attempt, on the same filesystem; without it nothing is committed.
        keep_last: newest checkpoints to keep.
        keep_step: one more to keep, the best.
    Returns: the committed folder; seconds that its parts took, on this rank.
    Raises:
        SystemFault: on every rank where any rank could not write; what was saved before stays.
        Replaced: another attempt owns the run.
    """
    final = root / f"step-{manifest['step']:07d}"
    scratch = fence / final.name

    def prepare() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()

    def write_share() -> tuple[str, str, int]:
        mine = {name: t for i, (name, t) in enumerate(tensors) if i // 3 % world.size == world.rank}
        data = safetensors.torch.save({name: t.contiguous() for name, t in mine.items()})
        path = scratch / f"state-{world.rank:05d}-of-{world.size:05d}.safetensors"
        with fsio.naming_full_disk(path), open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return path.name, hashlib.sha256(data).hexdigest(), len(data)

    began = time.monotonic()
    try:
        on_main(prepare, world)
        written = on_all(write_share, world)
        wrote = time.monotonic()
        files = {name: {"sha256": digest, "bytes": size} for name, digest, size in written}
        whole = {"format": FORMAT, **manifest, "world_size": world.size, "files": files}
        on_main(lambda: commit(scratch, final, whole), world)
        on_main(lambda: prune(root, keep_last, keep_step, fence), world)
    except FitbError:
        on_main(lambda: check_owned(fence), world)  # all ranks are here
        if world.is_main:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    return final, {"write": wrote - began, "commit": time.monotonic() - wrote}


@dataclass(frozen=True)
class Checkpoint:
    """What this rank has read of a checkpoint, every byte of it hashed.

    Args:
        path: its folder.
        manifest: without its own sha256.
        tensors: all of them, on the CPU.
    """

    path: Path
    manifest: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def load(root: Path, world: World) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, the same on every rank; None on a fresh run.

    Rank 0 chooses, and tells the others the manifest; each rank reads every file once, hashes what
    it has read and takes the tensors from these very bytes. Bad ones are renamed out of the way;
    one that a newer fitb wrote is good, and left.

    Args:
        root: the checkpoints folder of the run.
    Raises:
        CheckpointError: there are checkpoints and none verifies, or there were and they are gone: a
            run never starts from zero in silence. Or the newest is of a newer format.
        SystemFault: the filesystem failed to read one, or a rank reads other bytes than rank 0; on
            every rank.
    """
    here: list[Checkpoint] = []

    def find() -> tuple[str, dict[str, Any]] | None:
        bad = [path.name for path in root.glob("step-*.bad*")]
        for path in reversed(committed(root)):
            try:
                here.append(read(path))
                return path.name, here[0].manifest
            except NewerFormat:
                raise
            except CheckpointError as error:
                aside = fsio.set_aside(path)
                bad.append(aside.name)
                logger.warning("checkpoint set aside as %s: %s", aside, error)
        if bad or (root / LATEST).exists():
            found = ", ".join(sorted(bad)) or "all gone"
            raise CheckpointError(
                f"{root} had checkpoints and none verifies ({found});"
                " expected at least one good one. Restore one under its name, or choose another"
                " --run_dir"
            )
        check_never_saved(root.parent)
        return None

    chosen = on_main(find, world)
    if chosen is None:
        return None
    path, manifest = root / chosen[0], chosen[1]

    def read_too() -> None:
        if not here:
            here.append(Checkpoint(path, manifest, _read_as_rank_0(path, manifest, world)))

    on_all(read_too, world)
    return here[0]


def read(path: Path) -> Checkpoint:
    """Read a checkpoint whose every file is as it was written.

    Raises: CheckpointError saying which file is not; SystemFault where the filesystem fails.
    """
    manifest = read_manifest(path)
    return Checkpoint(path, manifest, _read_tensors(path, manifest))


def _read_tensors(path: Path, manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read every tensor, from the bytes that were hashed."""
    tensors: dict[str, torch.Tensor] = {}
    for name, expected in manifest["files"].items():
        tensors.update(safetensors.torch.load(read_file(path / name, expected)))
    return tensors


def _read_as_rank_0(path: Path, manifest: dict[str, Any], world: World) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint that rank 0 has found good.

    Raises: SystemFault where this rank finds something else.
    """
    try:
        return _read_tensors(path, manifest)
    except CheckpointError as error:
        host = socket.gethostname()
        raise SystemFault(
            f"rank {world.rank} on {host} reads other bytes than rank 0, which found the checkpoint"
            f" good: {error}. Start again; if it is {host} again, do without that host"
        ) from error
