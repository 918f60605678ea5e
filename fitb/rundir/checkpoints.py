"""Checkpoints on the disk: which there are, what each holds, and how one appears and goes.

Every byte is held against the manifest, which is held against its own hash. A folder is named
`step-NNNNNNN` once it is whole: it leaves the fence of its attempt (ownership.py) by a rename.
Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from fitb.base import fsio
from fitb.base.errors import CheckpointError, SystemFault
from fitb.rundir import names
from fitb.rundir.ownership import write_fenced

FORMAT = 1


class NewerFormat(CheckpointError):
    """A checkpoint that is good, but not for this fitb."""


def committed(checkpoints: Path) -> list[Path]:
    """Return the checkpoints in the folder of a run's checkpoints, oldest first."""
    folders = checkpoints.glob("step-*")
    found = [path for path in folders if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step that the name of a checkpoint tells."""
    return int(checkpoint.name.removeprefix("step-"))


def last_committed_step(run: Path) -> int:
    """Return the step of the newest checkpoint, or 0."""
    return max(map(step_of, committed(run / names.CHECKPOINTS)), default=0)


def checkpoint_of(path: str | Path) -> Path | None:
    """Return the checkpoint that a path means: itself, or the newest of a run; None for others.

    The newest is what `latest` names, or where that is damaged the last one that has a manifest.

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
    """Return the checkpoint of a run's lowest validation loss, else its newest; None for none."""
    newest = checkpoint_of(run)
    if newest is None:
        return None
    try:
        step = fsio.read_json(newest / names.MANIFEST, "best_step")["best_step"]
    except (OSError, ValueError):
        return newest
    best = names.checkpoint(run, step) if type(step) is int else newest
    return best if (best / names.MANIFEST).is_file() else newest


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint, without its own sha256.

    Raises: NewerFormat; CheckpointError where it is not what was written.
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
            f" {FORMAT}; go on with the fitb that wrote it, {manifest.get('versions')}"
        )
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != fsio.sha256_json(rest):
        raise CheckpointError(
            f"{path / names.MANIFEST} is not what was written: its sha256 differs"
        )
    return rest


def read_file(file: Path, expected: dict[str, Any]) -> bytes:
    """Return the content of a file of a checkpoint.

    Args:
        expected: its entry in the manifest: bytes, sha256.
    Raises: CheckpointError where it is not what was written.
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
    """Make a folder that all ranks have written the newest checkpoint.

    Args:
        scratch: the folder, in the fence of the attempt.
        final: its name in checkpoints/.
        manifest: with `files`, name -> bytes and sha256.
    Raises: SystemFault where it does not read back; OSError where the fence is gone.
    """
    root, fence = final.parent, scratch.parent
    _read_back(scratch, manifest["files"])
    fsio.write_json(scratch / names.MANIFEST, {**manifest, "sha256": fsio.sha256_json(manifest)})
    fsio.fsync_dir(scratch)
    if final.exists():  # an older attempt's save of the same step
        _discard(final, fence)
    scratch.rename(final)
    fsio.fsync_dir(root)
    write_fenced(fence, root / names.LATEST, final.name + "\n")


def _read_back(path: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check what was just written; a filesystem that gives back something else may recover."""
    try:
        for name, expected in files.items():
            read_file(path / name, expected)
    except CheckpointError as error:
        raise SystemFault(f"what was just saved does not read back: {error}") from error


def prune(root: Path, keep_last: int, keep_step: int | None, fence: Path) -> None:
    """Delete what is neither among the newest nor the best, and leftovers of an earlier fitb."""
    older = [p for p in committed(root)[:-keep_last] if step_of(p) != keep_step]
    for path in [*root.glob("step-*.tmp"), *older]:
        _discard(path, fence)


def _discard(path: Path, fence: Path) -> None:
    """Take a folder away whole, and only as the owner of the run; what is left goes with it."""
    aside = fence / f"{path.name}.discarded"
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)  # a file that somebody reads may stay on NFS


def last_saved(run: Path) -> int:
    """Return the last step that the records of a run say it has saved; 0 where they say none.

    Raises: CheckpointError where done.json cannot be read; DataError for a line of events.jsonl.
    """
    try:
        done = fsio.read_json(run / names.DONE)
    except FileNotFoundError:
        done = {}
    except ValueError as error:
        raise CheckpointError(
            f"{run / names.DONE} cannot be read ({error}); it says what {run} has saved:"
            " restore or remove it"
        ) from error
    known = ("save", "resume", "requeue", "stop", None)  # None: of done.json
    records = [*fsio.read_records(run / names.EVENTS), done]
    return max(record.get("step") or 0 for record in records if record.get("event") in known)


def check_never_saved(run: Path) -> None:
    """Raise CheckpointError where a run without checkpoints has had one, or may have had.

    Every save is an event. A run that has logged or exported something, and whose events are gone
    as well, is not taken for one that never saved.
    """
    events = fsio.read_records(run / names.EVENTS)
    begun = sum(event.get("event") == "attempt" for event in events)
    left = [name for name in (names.METRICS, names.EXPORT) if _holds_something(run / name)]
    if step := last_saved(run):
        what = f"has saved step {step}"
    elif left and begun < 2:  # the one is this attempt
        what = f"has {' and '.join(left)}, and events.jsonl does not tell what it has saved"
    else:
        return
    raise CheckpointError(
        f"{run} {what}, and {run / names.CHECKPOINTS} holds none: they were removed, or the"
        " filesystem does not show them. Restore that folder; or begin from step 0 under another"
        f" --run_dir, or under this one after `mv {run} {run}.old`"
    )


def _holds_something(path: Path) -> bool:
    return path.is_dir() or (path.exists() and path.stat().st_size > 0)
