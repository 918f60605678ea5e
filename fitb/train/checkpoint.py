"""Checkpoints that are whole or not there, and a load that trusts nothing it has not hashed.

Commit protocol: all ranks write their share into the licence of their attempt (attempt.py); they
exchange what they wrote; rank 0 reads it back, writes manifest.json, renames the folder out of the
licence, replaces `latest`, prunes. A kill at any point leaves the earlier checkpoint the newest
one, and an attempt whose licence is gone cannot rename. On load rank 0 alone chooses, and each rank
hashes what it reads itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist

from fitb import fsio
from fitb.errors import CheckpointError, FitbError, SystemFault
from fitb.modes import fault_of
from fitb.train.attempt import check_owned, write_fenced
from fitb.world import World

logger = logging.getLogger(__name__)
T = TypeVar("T")
FORMAT = 1
MANIFEST = "manifest.json"


class NewerFormat(CheckpointError):
    """A checkpoint that is good, but not for this fitb."""


def save(
    root: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    manifest: dict[str, Any],
    *,
    licence: Path,
    world: World,
    keep_last: int,
    keep_step: int | None = None,
) -> tuple[Path, dict[str, float]]:
    """Commit a checkpoint; all ranks call this at the same step.

    Args:
        root: the checkpoints folder of the run.
        tensors: names and whole tensors, in the same order on every rank; collective.
        manifest: what else to remember; must hold `step`.
        licence: folder of this attempt, on the same filesystem; without it nothing is committed.
        keep_last: newest checkpoints to keep.
        keep_step: one more to keep, the best.
    Returns: the committed folder; seconds that its parts took, on this rank.
    Raises:
        SystemFault: on every rank where any rank could not write; what was saved before stays.
        Replaced: another attempt owns the run.
    """
    final = root / f"step-{manifest['step']:07d}"
    scratch = licence / final.name

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
        on_main(lambda: _commit(scratch, final, whole), world)
        on_main(lambda: _prune(root, keep_last, keep_step, licence), world)
    except FitbError:
        on_main(lambda: check_owned(licence), world)  # all ranks are here
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
        for path in reversed(_committed(root)):
            try:
                here.append(read(path))
                return path.name, here[0].manifest
            except NewerFormat:
                raise
            except CheckpointError as error:
                aside = fsio.set_aside(path)
                bad.append(aside.name)
                logger.warning("checkpoint set aside as %s: %s", aside, error)
        if bad or (root / "latest").exists():
            found = ", ".join(sorted(bad)) or "all gone"
            raise CheckpointError(
                f"{root} had checkpoints and none verifies ({found});"
                " expected at least one good one. Restore one under its name, or choose another"
                " --run_dir"
            )
        _check_never_saved(root.parent)
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
    manifest = _read_manifest(path)
    return Checkpoint(path, manifest, _read_tensors(path, manifest))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = fsio.read_json(path / MANIFEST)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path / MANIFEST} is not an object; expected a manifest")
    if isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT:
        raise NewerFormat(
            f"{path} has checkpoint format {manifest['format']} and this fitb reads format"
            f" {FORMAT}; go on with the fitb that wrote it, {manifest.get('versions')}"
        )
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != fsio.sha256_json(rest):
        raise CheckpointError(f"{path / MANIFEST} is not what was written: its sha256 differs")
    return rest


def _read_tensors(path: Path, manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read every tensor, from the bytes that were hashed."""
    tensors: dict[str, torch.Tensor] = {}
    for name, expected in manifest["files"].items():
        tensors.update(safetensors.torch.load(_content(path / name, expected)))
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


def _content(file: Path, expected: dict[str, Any]) -> bytes:
    """Return the content of a file of a checkpoint, if it is what the manifest says."""
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(f"{file} is missing; expected {expected['bytes']} bytes") from error
    if len(data) != expected["bytes"]:
        raise CheckpointError(f"{file} has {len(data)} bytes; expected {expected['bytes']}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected["sha256"]:
        raise CheckpointError(f"{file} has sha256 {digest}; expected {expected['sha256']}")
    return data


def last_saved(run: Path) -> int:
    """Return the last step that the records of a run say it has saved; 0 where they say none.

    Raises: CheckpointError where done.json cannot be read; DataError for a line of events.jsonl.
    """
    try:
        done = fsio.read_json(run / "done.json")
    except FileNotFoundError:
        done = {}
    except ValueError as error:
        raise CheckpointError(
            f"{run / 'done.json'} cannot be read ({error}), which says what {run} has saved;"
            " restore or remove it"
        ) from error
    known = ("save", "resume", "requeue", "stop", None)  # None: of done.json
    records = [*fsio.read_records(run / "events.jsonl"), done]
    return max(record.get("step") or 0 for record in records if record.get("event") in known)


def _check_never_saved(run: Path) -> None:
    """Raise CheckpointError where a run without checkpoints has had one, or may have had.

    Every save is an event. A run that has logged or exported something, and whose events are gone
    as well, is not taken for one that never saved.
    """
    events = fsio.read_records(run / "events.jsonl")
    begun = sum(event.get("event") == "attempt" for event in events)
    left = [name for name in ("metrics.jsonl", "export") if _holds_something(run / name)]
    if step := last_saved(run):
        what = f"has saved step {step}"
    elif left and begun < 2:  # the one is this attempt
        what = f"has {' and '.join(left)}, and events.jsonl does not tell what it has saved"
    else:
        return
    raise CheckpointError(
        f"{run} {what}, and {run / 'checkpoints'} holds no checkpoint: they were removed, or the"
        " filesystem does not show them. Restore that folder; or begin from step 0 under another"
        f" --run_dir, or under this one after `mv {run} {run}.old`"
    )


def _holds_something(path: Path) -> bool:
    return path.is_dir() or (path.exists() and path.stat().st_size > 0)


def _read_back(path: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check what was just written; a filesystem that gives back something else may recover."""
    try:
        for name, expected in files.items():
            _content(path / name, expected)
    except CheckpointError as error:
        raise SystemFault(f"what was just saved does not read back: {error}") from error


def _committed(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = (path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(found, key=lambda path: int(path.name[5:]))


def _commit(scratch: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Make what all ranks wrote the newest checkpoint."""
    root, licence = final.parent, scratch.parent
    _read_back(scratch, manifest["files"])
    fsio.write_json(scratch / MANIFEST, {**manifest, "sha256": fsio.sha256_json(manifest)})
    fsio.fsync_dir(scratch)
    if final.exists():  # an older attempt's save of the same step
        _discard(final, licence)
    scratch.rename(final)
    fsio.fsync_dir(root)
    write_fenced(licence, root / "latest", final.name + "\n")


def _prune(root: Path, keep_last: int, keep_step: int | None, licence: Path) -> None:
    """Delete what is neither among the newest nor the best, and leftovers of an earlier fitb."""
    older = [p for p in _committed(root)[:-keep_last] if int(p.name[5:]) != keep_step]
    for path in [*root.glob("step-*.tmp"), *older]:
        _discard(path, licence)


def _discard(path: Path, licence: Path) -> None:
    """Take a folder away whole, and only as the owner of the run; what is left goes with it."""
    aside = licence / f"{path.name}.discarded"
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)  # a file that somebody reads may stay on NFS


def on_main(action: Callable[[], T], world: World) -> T:
    """Run on rank 0 and give every rank its result, or its error."""
    outcome: list[Any] = [None, None]
    if world.is_main:
        outcome = _attempt(action)
    if world.size > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def on_all(action: Callable[[], T], world: World) -> list[T]:
    """Run on every rank and give every rank all results, or the first rank's error."""
    outcomes: list[Any] = [_attempt(action)]
    if world.size > 1:
        mine = outcomes[0]
        outcomes = [None] * world.size
        dist.all_gather_object(outcomes, mine)
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]


def _attempt(action: Callable[[], T]) -> list[Any]:
    try:
        return [action(), None]
    except FitbError as error:
        return [None, error]
    except OSError as error:
        return [None, fault_of(error, "a file of the run")]
