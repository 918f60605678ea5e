"""Crash-safe files: atomic writes of files and folders, JSON lines, checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fitb.base.errors import DataError, SystemFault
from fitb.base.modes import match_modes
from fitb.base.renameat2 import EXCHANGE, NOREPLACE, UNSUPPORTED, rename

logger = logging.getLogger(__name__)
_ASIDE = ".old"  # suffix of a replaced folder between two renames, without RENAME_EXCHANGE


class DamagedFile(DataError, ValueError):
    """A file whose content is not valid."""


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into a SystemFault that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SystemFault(
            f"no space left while writing {path}: {error.strerror}; free space or quota there"
            " and start again; earlier files are untouched"
        ) from error


def fsync_dir(path: Path) -> None:
    """Make renames inside a folder durable, if its filesystem supports that."""
    try:
        _fsync(path)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def fsync_tree(folder: Path) -> None:
    """Make a folder and everything below it durable."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            if not os.path.islink(Path(root, name)):
                _fsync(Path(root, name))
        fsync_dir(Path(root))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically: readers see the old or the new content, never a part.

    Raises: SystemFault if the disk or quota is full; the old file stays.
    """
    with written_whole(path) as part, open(part, "xb") as file:  # x: never through a symlink
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which replaces it after the block succeeds.

    The name is unique across processes and hosts. The content is durable before the rename.

    Raises: SystemFault if the disk or quota is full; the old file stays.
    """
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{secrets.token_hex(4)}.part")
    with naming_full_disk(path):
        try:
            yield part
            _fsync(part)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    fsync_dir(path.parent)


@contextlib.contextmanager
def folder_written_whole(
    path: Path, room: Path | None = None, *, replace: bool = True
) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `path` after the block succeeds.

    The content is durable before the rename. With RENAME_EXCHANGE there is no moment without a
    folder at `path`.

    Args:
        path: folder to create or replace.
        room: existing folder for the temporary one, on the same filesystem; by default the parent.
        replace: whether an existing folder is replaced; else it is an error.
    Raises:
        FileExistsError: `path` exists and must not be replaced.
        SystemFault: the disk or quota is full; the old folder stays.
    """
    if room is None:
        room = path.parent
        room.mkdir(parents=True, exist_ok=True)
    scratch = room / f".{path.name}.{secrets.token_hex(4)}.part"
    scratch.mkdir()
    with naming_full_disk(path):
        try:
            yield scratch
            match_modes(scratch)
            fsync_tree(scratch)
            replaced = _put(scratch, path, replace)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        fsync_dir(path.parent)
        if replaced:
            shutil.rmtree(replaced, ignore_errors=True)
        fsync_dir(room)


def _put(scratch: Path, path: Path, replace: bool) -> Path | None:
    """Rename a folder to its final name; return the new path of the folder it replaced, or None."""
    if rename(scratch, path, NOREPLACE):
        return None
    if not replace:
        raise FileExistsError(f"{path} already exists")
    if rename(scratch, path, EXCHANGE):
        return scratch
    aside = scratch.with_suffix(_ASIDE)
    path.rename(aside)
    try:
        scratch.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.rename(path)
        raise
    return aside


def put_back(path: Path, room: Path) -> bool:
    """Restore a folder after a kill between the two renames that replace it.

    An existing folder is kept: the rename onto it fails.

    Args:
        path: as in `folder_written_whole`.
        room: as in `folder_written_whole`.
    Returns: whether a folder was restored.
    """
    found = False
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(room)):
            if name.startswith(f".{path.name}.") and name.endswith(_ASIDE):
                with contextlib.suppress(OSError):
                    (room / name).rename(path)
                    found = True
    if found:
        fsync_dir(path.parent)
    return found


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to PATH.bad, or PATH.badN; return the new path."""
    number = 0
    while os.path.lexists(aside := path.with_name(f"{path.name}.bad{number or ''}")):
        number += 1
    path.rename(aside)
    return aside


def to_json(value: Any, **form: Any) -> str:
    """Return standard JSON, with null for NaN and infinities."""
    return json.dumps(finite(value), allow_nan=False, **form)


def finite(value: Any) -> Any:
    """Return a JSON-serialisable value with None for NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *keys: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        keys: keys that the object must have; without keys any value is accepted.
    Raises: DamagedFile if it is not JSON, or lacks a key.
    """
    try:
        return parse_json(path.read_bytes(), *keys)
    except ValueError as error:
        raise DamagedFile(
            f"{path} is damaged: {error}; restore a copy, or remove it so that it is written again"
        ) from error


def parse_json(text: bytes, *keys: str) -> Any:
    """Parse JSON in UTF-8.

    Args:
        text: the JSON.
        keys: keys that the object must have; without keys any value is accepted.
    Raises: ValueError with the reason.
    """
    try:
        value = json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if keys and not isinstance(value, dict):
        raise ValueError(f"it is of type {type(value).__name__}, expected an object")
    missing = [key for key in keys if key not in value]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    return value


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line, durably.

    Raises: SystemFault if the disk or quota is full; the file is unchanged.
    """
    handle = open_for_appending(path)
    try:
        append_to(handle, path, record)
    finally:
        os.close(handle)


def create(path: Path) -> bool:
    """Create an empty file; return False if it exists.

    True proves that the name was free. A failed lookup does not: NFS may answer it from a cache.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    return True


def open_for_appending(path: Path) -> int:
    """Return a file descriptor for `append_to`."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def append_to(handle: int, path: Path, record: dict[str, Any]) -> None:
    """Append like `append_line`, to an open file descriptor."""
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    with naming_full_disk(path):
        end = os.lseek(handle, 0, os.SEEK_END)
        try:
            while line:
                line = line[os.write(handle, line) :]
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, end)  # or the next line would follow half a line
            raise


def read_lines(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON lines file that must be complete: metrics, rows, a queue.

    A last line without a line end, as a kill leaves it, is skipped.

    Args:
        path: the file; none is like an empty one.
        keys: keys that each object must have.
    Raises: DamagedFile naming a damaged line.
    """
    for number, record in _records(path, keys):
        if isinstance(record, ValueError):
            raise DamagedFile(f"{path}:{number}: {record}; repair or remove that line")
        yield record


def read_records(
    path: Path,
    *keys: str,
    tell: Callable[[str], None] = logger.warning,
    tail_bytes: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON lines file that is only a log; damaged lines are skipped.

    Args:
        path: the file; none is like an empty one.
        keys: keys that each object must have.
        tell: called at the end with a sentence about skipped lines.
        tail_bytes: read only the whole lines within the last bytes.
    """
    damaged: list[int] = []
    for number, record in _records(path, keys, tail_bytes):
        if isinstance(record, ValueError):
            damaged.append(number)
        else:
            yield record
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        lines = f"{len(damaged)} damaged lines are" if len(damaged) > 1 else "a damaged line is"
        tell(f"{path}: {lines} skipped (line {shown})")


def _records(
    path: Path, keys: tuple[str, ...], tail_bytes: int | None = None
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Yield the number of each whole line (from 1 in a tail), and its object or what is wrong."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        size = file.seek(0, os.SEEK_END)
        begin = max(0, size - tail_bytes) if tail_bytes is not None else 0
        file.seek(begin)
        if begin:
            file.readline()  # a part of a line
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                found = parse_json(line, *keys)
                if not isinstance(found, dict):
                    raise ValueError(f"it is of type {type(found).__name__}, expected an object")
            except ValueError as error:
                found = error
            yield number, found


def is_torn(path: Path) -> bool:
    """Whether the last line has no line end, as a kill leaves it."""
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # it is not there, or empty
        return False


def mend_tail(path: Path) -> None:
    """Truncate a last line without a line end, so that the next append starts a line."""
    if is_torn(path):
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON (sorted keys, no spaces), in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
