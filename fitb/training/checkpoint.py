"""Save and load sharded checkpoints: each rank writes its share; rank 0 verifies and commits.

All ranks write into the fence of their attempt (rundir/ownership.py) and exchange names, sizes and
hashes; rank 0 reads everything back and commits it by a rename (rundir/checkpoints.py). A kill at
any point leaves the previous checkpoint the newest, and an attempt that has lost its fence cannot
commit. On load rank 0 alone chooses the checkpoint, so all ranks resume the same one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist

from fitb.base import fsio
from fitb.base.errors import CheckpointError, FitbError, SystemFault
from fitb.base.world import World
from fitb.model.fragments import check_coverage, joined
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
from fitb.rundir.names import LATEST, checkpoint_name
from fitb.rundir.ownership import check_owned
from fitb.training.collectives import on_all, on_main

logger = logging.getLogger(__name__)


def save(
    root: Path,
    tensors: Mapping[str, torch.Tensor],
    manifest: dict[str, Any],
    *,
    fence: Path,
    world: World,
    keep_last: int,
    keep_steps: Collection[int] = (),
    group: dist.ProcessGroup | None = None,
) -> tuple[Path, dict[str, float]]:
    """Write and commit a checkpoint. Collective: every rank calls this at the same step.

    Args:
        root: RUN/checkpoints.
        tensors: what this rank holds, on the CPU: fragments by key (model/fragments.py), or whole
            tensors by name.
        manifest: further entries of the manifest: `step`, and the `shapes` of fragments.
        fence: folder of this attempt, on the same filesystem; without it nothing can be committed.
        keep_last: number of newest checkpoints to keep.
        keep_steps: steps of further checkpoints to keep.
        group: process group of the ranks; None is the default one.
    Returns: the committed folder; seconds spent on `write` and `commit`, on this rank.
    Raises:
        SystemFault: on every rank if any rank could not write; earlier checkpoints are untouched.
        Replaced: another attempt owns the run.
    """
    final = root / checkpoint_name(manifest["step"])
    scratch = fence / final.name

    def prepare() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()

    def write_share() -> tuple[str, dict[str, Any], list[tuple[str, int]]]:
        path = scratch / f"state-{world.rank:05d}-of-{world.size:05d}.safetensors"
        entry = write_tensors(path, tensors)
        return path.name, entry, [(key, part.numel()) for key, part in tensors.items()]

    began = time.monotonic()
    try:
        on_main(prepare, world, group)
        written = on_all(write_share, world, group)
        wrote = time.monotonic()
        check_coverage(
            (part for _, _, parts in written for part in parts), manifest.get("shapes", {})
        )
        files = {name: entry for name, entry, _ in written}
        whole = {"format": FORMAT, **manifest, "world_size": world.size, "files": files}
        on_main(lambda: commit(scratch, final, whole), world, group)
        on_main(lambda: prune(root, keep_last, keep_steps, fence), world, group)
    except FitbError:
        on_main(lambda: check_owned(fence), world, group)  # the error reached all ranks
        if world.is_main:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    return final, {"write": wrote - began, "commit": time.monotonic() - wrote}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write a safetensors file from where tensors lie, and return its sha256 and bytes.

    safetensors' own writers copy all of them, twice, and hold the GIL meanwhile.

    Args:
        tensors: fp32 tensors on the CPU.
    Raises: SystemFault if the disk is full.
    """
    header, end = {}, 0
    for key, part in tensors.items():
        begin, end = end, end + part.numel() * part.element_size()
        header[key] = {"dtype": "F32", "shape": list(part.shape), "data_offsets": [begin, end]}
        assert part.dtype == torch.float32, (key, part.dtype)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with fsio.naming_full_disk(path), open(path, "wb") as file:

        def write(data: Any) -> None:
            digest.update(data)
            file.write(data)

        write(len(text).to_bytes(8, "little"))
        write(text)
        for part in tensors.values():
            write(part.detach().contiguous().numpy().reshape(-1).view("u1"))
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": 8 + len(text) + end}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, every byte of it verified.

    Args:
        path: folder that it was read from.
        manifest: content of manifest.json without its sha256.
        tensors: name -> full tensor, on the CPU.
    """

    path: Path
    manifest: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def load(root: Path, world: World) -> Checkpoint | None:
    """Load the newest checkpoint that verifies, the same on every rank; None for a fresh run.

    Rank 0 chooses and broadcasts the manifest. Each rank reads every file once, hashes what it has
    read, and takes the tensors from those bytes. A damaged checkpoint is renamed out of the way.

    Args:
        root: RUN/checkpoints.
    Raises:
        CheckpointError: checkpoints exist and none verifies, or they have disappeared (a run never
            silently restarts from step 0), or the newest has a format that a newer fitb wrote.
        SystemFault: on every rank, if the filesystem fails or a rank reads other bytes than rank 0.
    """
    loaded: list[Checkpoint] = []

    def find() -> tuple[str, dict[str, Any]] | None:
        bad = [path.name for path in root.glob("step-*.bad*")]
        for path in reversed(committed(root)):
            try:
                loaded.append(read(path))
                return path.name, loaded[0].manifest
            except NewerFormat:
                raise
            except CheckpointError as error:
                aside = fsio.set_aside(path)
                bad.append(aside.name)
                logger.warning("checkpoint set aside as %s: %s", aside, error)
        if bad or (root / LATEST).exists():
            found = ", ".join(sorted(bad)) or "all gone"
            raise CheckpointError(
                f"{root} had checkpoints and none verifies ({found}); restore one under its name,"
                " or choose another --run_dir"
            )
        check_never_saved(root.parent)
        return None

    chosen = on_main(find, world)
    if chosen is None:
        return None
    return _on_every_rank(root / chosen[0], chosen[1], loaded, world)


def load_from(path: Path, world: World) -> Checkpoint:
    """Load one checkpoint of any run, which is not touched, the same on every rank.

    Raises: CheckpointError if it is damaged; SystemFault as `load`.
    """
    loaded: list[Checkpoint] = []

    def find() -> dict[str, Any]:
        loaded.append(read(path))
        return loaded[0].manifest

    return _on_every_rank(path, on_main(find, world), loaded, world)


def _on_every_rank(
    path: Path, manifest: dict[str, Any], loaded: Sequence[Checkpoint], world: World
) -> Checkpoint:
    """Return rank 0's checkpoint, which other ranks read for themselves."""

    def read_on_this_rank() -> Checkpoint:
        if loaded:
            return loaded[0]
        try:
            return Checkpoint(path, manifest, _read_tensors(path, manifest))
        except CheckpointError as error:
            host = socket.gethostname()
            raise SystemFault(
                f"rank {world.rank} on {host} reads other bytes than rank 0, which verified the"
                f" checkpoint: {error}. Start again; if {host} fails again, exclude that host"
            ) from error

    found: list[Checkpoint] = []
    on_all(lambda: found.append(read_on_this_rank()), world)
    return found[0]


def read(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises: CheckpointError naming the first damaged file; SystemFault if the filesystem fails.
    """
    manifest = read_manifest(path)
    return Checkpoint(path, manifest, _read_tensors(path, manifest))


def _read_tensors(path: Path, manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read every tensor, from the same bytes that were hashed."""

    def parts() -> Iterator[tuple[str, torch.Tensor]]:
        for name, expected in manifest["files"].items():
            yield from safetensors.torch.load(read_file(path / name, expected)).items()

    return joined(parts(), manifest.get("shapes", {}))
