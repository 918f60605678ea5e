"""Checkpoints on disk: list, verify, commit and prune them, without torch.

Every byte is verified against the manifest, and the manifest against its own hash. A checkpoint is
written in the fence of its attempt (ownership.py) and renamed to `step-NNNNNNN` when complete.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fitb.base import fsio
from fitb.base.errors import CheckpointError, SystemFault
from fitb.rundir import names
from fitb.rundir.events import as_written, num_attempts, read_events
from fitb.rundir.ownership import write_fenced

FORMAT = 2  # 1 had whole tensors, each in the file of one rank


class NewerFormat(CheckpointError):
    """A checkpoint in a format that only a newer fitb can read."""


def committed(checkpoints: Path) -> list[Path]:
    """Return the committed checkpoints in RUN/checkpoints, oldest first."""
    folders = checkpoints.glob("step-*")
    found = [path for path in folders if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def last_committed_step(run: Path) -> int:
    """Return the step of the newest committed checkpoint, 0 for none."""
    return max(map(step_of, committed(run / names.CHECKPOINTS)), default=0)


def checkpoint_of(path: str | Path) -> Path | None:
    """Return the checkpoint at a path: itself, or the newest of a run; None if it is neither.

    The newest is the one in `latest` or, if that is damaged, the last one with a manifest.

    Args:
        path: RUN/checkpoints/step-NNNNNNN, or RUN.
    """
    folder = Path(path)
    if folder.parent.name == names.CHECKPOINTS and (folder / names.MANIFEST).is_file():
        return folder
    latest = folder / names.CHECKPOINTS / names.LATEST
    if not (names.is_run(folder) and latest.is_file()):
        return None
    whole = [each for each in committed(latest.parent) if (each / names.MANIFEST).is_file()]
    named = latest.read_text(encoding="utf-8", errors="replace").strip()
    newest = [each for each in whole if each.name == named] or whole[-1:]
    return newest[0] if newest else None


def best_checkpoint_of(run: Path) -> Path | None:
    """Return the checkpoint with a run's lowest validation loss, else its newest; None for none."""
    newest = checkpoint_of(run)
    if newest is None:
        return None
    step = recorded_best(newest)[1]
    best = newest if step is None else names.checkpoint(run, step)
    return best if (best / names.MANIFEST).is_file() else newest


def recorded_best(checkpoint: Path) -> tuple[float | None, int | None]:
    """Return best validation loss and step from a manifest, unverified; None for what it lacks."""
    try:
        manifest = fsio.read_json(checkpoint / names.MANIFEST, "best_step")
    except (OSError, ValueError):
        return None, None
    loss, step = manifest.get("best_loss"), manifest["best_step"]
    return (
        loss if type(loss) in (int, float) else None,
        step if type(step) is int else None,
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and verify the manifest of a checkpoint; return it without its own sha256.

    Raises: NewerFormat; CheckpointError if it is damaged.
    """
    try:
        manifest = fsio.read_json(path / names.MANIFEST)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError) as error:
        raise CheckpointError(f"{path / names.MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path / names.MANIFEST} is not an object; expected a manifest")
    if isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT:
        raise NewerFormat(
            f"{path} has checkpoint format {manifest['format']} and this fitb reads format"
            f" {FORMAT}; resume with the fitb that wrote it, {manifest.get('versions')}"
        )
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != fsio.sha256_json(rest):
        raise CheckpointError(
            f"{path / names.MANIFEST} is not what was written: its sha256 differs"
        )
    return rest


def read_file(file: Path, expected: dict[str, Any]) -> bytes:
    """Read and verify a file of a checkpoint.

    Args:
        file: path.
        expected: its entry in the manifest: bytes, sha256.
    Raises: CheckpointError if it is missing or damaged.
    """
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


def commit(scratch: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Commit a folder that all ranks have written as the newest checkpoint.

    Args:
        scratch: the folder, in the fence of the attempt.
        final: its path in RUN/checkpoints.
        manifest: manifest with `files`, name -> bytes and sha256.
    Raises: SystemFault if it does not read back; OSError if the fence is gone.
    """
    root, fence = final.parent, scratch.parent
    try:
        for name, expected in manifest["files"].items():
            read_file(scratch / name, expected)
    except CheckpointError as error:  # of what was just written, so it may pass
        raise SystemFault(f"the checkpoint just written does not read back: {error}") from error
    fsio.write_json(scratch / names.MANIFEST, {**manifest, "sha256": fsio.sha256_json(manifest)})
    fsio.fsync_dir(scratch)
    if final.exists():  # an earlier attempt saved the same step
        _discard(final, fence)
    scratch.rename(final)
    fsio.fsync_dir(root)
    write_fenced(fence, root / names.LATEST, final.name + "\n")


def prune(root: Path, keep_last: int, keep_steps: Collection[int], fence: Path) -> None:
    """Delete all but the newest checkpoints and some steps, and leftovers of old versions."""
    older = [p for p in committed(root)[:-keep_last] if step_of(p) not in keep_steps]
    for path in [*root.glob("step-*.tmp"), *older]:
        _discard(path, fence)


def _discard(path: Path, fence: Path) -> None:
    """Remove a folder by renaming it into the fence, which only the owner of the run can."""
    aside = fence / f"{path.name}.discarded"
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)  # files open elsewhere may remain on NFS


def last_saved(run: Path) -> int:
    """Return the last step that a run's records say it has saved, 0 for none.

    Raises: CheckpointError if done.json cannot be read.
    """
    try:
        done = as_written(fsio.read_json(run / names.DONE, "step"))
    except FileNotFoundError:
        done = {}
    except ValueError as error:
        raise CheckpointError(
            f"{run / names.DONE} cannot be read ({error}); it records what {run} has saved:"
            " restore or remove it"
        ) from error
    known = ("save", "resume", "restart", "requeue", "stop", None)  # None: done.json
    records = [*read_events(run), done]
    steps: list[int] = [r.get("step", 0) for r in records if r.get("event") in known]
    return max(steps)


def check_never_saved(run: Path) -> None:
    """Raise CheckpointError if a run without checkpoints has saved one before, or may have.

    Every save is an event. If events.jsonl is lost as well, metrics or an export show that the run
    has trained.
    """
    left = [name for name in (names.METRICS, names.EXPORT) if _is_filled(run / name)]
    if step := last_saved(run):
        what = f"has saved step {step}"
    elif left and num_attempts(run) < 2:  # this attempt is one
        what = f"has {' and '.join(left)}, and events.jsonl does not tell what it has saved"
    else:
        return
    raise CheckpointError(
        f"{run} {what}, but {run / names.CHECKPOINTS} is empty: checkpoints were removed, or the"
        " filesystem does not show them. Restore that folder; or start from step 0 under another"
        f" --run_dir, or under this one after `mv {run} {run}.old`"
    )


def _is_filled(path: Path) -> bool:
    return path.is_dir() or (path.exists() and path.stat().st_size > 0)
