"""Files that are whole on the disk or not there: atomic writes, append-only lines, checksums."""

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
_ASIDE = ".old"  # of a folder between two renames, where names cannot be exchanged


class DamagedFile(DataError, ValueError):
    """A file that is not what fitb writes."""


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn 'no space' and 'over quota' into an error that says where."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SystemFault(
            f"no space left while writing {path}: {error.strerror}; free space or quota there"
            " and start again, what was saved before is untouched"
        ) from error


def fsync_dir(path: Path) -> None:
    """Make renames inside a folder survive a power cut, where its filesystem can promise that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Make every file and folder below a folder, and itself, survive a power cut."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _fsync_file(Path(root, name))
        fsync_dir(Path(root))


def _fsync_file(path: Path) -> None:
    if path.is_symlink():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file: readers see the old one or the new one, never a part.

    Raises: SystemFault where the disk or quota is full; the old file stays.
    """
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with naming_full_disk(path):
        try:
            with open(part, "xb") as file:  # never through a link that lies there
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    fsync_dir(path.parent)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a scratch name beside `path` that takes its place when the block ends well.

    No other process on any host uses that name, so two that write the same file do no harm.
    """
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{secrets.token_hex(4)}.part")
    with naming_full_disk(path):
        try:
            yield part
            _fsync_file(part)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    fsync_dir(path.parent)


@contextlib.contextmanager
def folder_written_whole(
    path: Path, room: Path | None = None, *, replace: bool = True
) -> Iterator[Path]:
    """Yield a scratch folder that takes the place of `path` when the block ends well.

    What the block wrote is on the disk before the folder has its name. Where the filesystem can
    exchange two names, there is no moment without a folder under `path`.

    Args:
        path: the folder to make or replace.
        room: where the scratch folders are, which must exist; None is beside `path`.
        replace: what is there; else nothing may be.
    Raises:
        FileExistsError: something is there that must not be replaced.
        SystemFault: the disk or quota is full; what was there stays.
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
    """Give a folder its name; return where what had that name is now, None for nothing.

    Raises: FileExistsError
    """
    if rename(scratch, path, NOREPLACE):
        return None
    if not replace:
        raise FileExistsError(f"{path} is there, and must not be replaced")
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
    """Give a folder its name back where a kill came between the two renames that replace it.

    A folder that is there keeps its name: a rename onto it fails.

    Args:
        path: as given to `folder_written_whole`.
        room: as given to it.
    Returns: whether there was one to put back.
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
    """Rename a damaged file or folder to a name of its own beside it, and return that."""
    number = 0
    while os.path.lexists(aside := path.with_name(f"{path.name}.bad{number or ''}")):
        number += 1
    path.rename(aside)
    return aside


def to_json(value: Any, **form: Any) -> str:
    """Return JSON that every reader takes: null where Python has NaN or an infinity."""
    return json.dumps(finite(value), allow_nan=False, **form)


def finite(value: Any) -> Any:
    """Return a JSON-able value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *keys: str) -> Any:
    """Read a JSON file.

    Args:
        keys: which an object must have; without any the value may be of any kind.
    Raises: DamagedFile where it is none, or lacks a key.
    """
    try:
        return parse_json(path.read_bytes(), *keys)
    except ValueError as error:
        raise DamagedFile(
            f"{path} is damaged: {error}; put back a copy that is whole, or remove it to have it"
            " made again"
        ) from error


def parse_json(text: bytes, *keys: str) -> Any:
    """Parse JSON.

    Args:
        keys: which an object must have; without any the value may be of any kind.
    Raises: ValueError saying what is wrong.
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
    """Append one JSON object as a line, in one write that survives a power cut.

    Raises: SystemFault where the disk or quota is full; the file is as it was.
    """
    handle = open_for_appending(path)
    try:
        append_to(handle, path, record)
    finally:
        os.close(handle)


def create(path: Path) -> bool:
    """Make an empty file unless there is one, and return whether it was made.

    This proves that a name was free. That a filesystem denies a name does not: on NFS it may answer
    from memory.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    return True


def open_for_appending(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def append_to(handle: int, path: Path, record: dict[str, Any]) -> None:
    """Do what `append_line` does to a file that is open for appending."""
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    with naming_full_disk(path):
        end = os.lseek(handle, 0, os.SEEK_END)
        try:
            while line:
                line = line[os.write(handle, line) :]
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, end)  # or the next line would go on after half a line
            raise


def read_lines(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of lines that must not miss one: numbers, rows, a queue.

    A line torn by a kill, at the end, is left out.

    Args:
        keys: which each object must have.
    Raises: DamagedFile naming a line that is none.
    """
    for number, record in _records(path, keys):
        if isinstance(record, ValueError):
            raise DamagedFile(f"{path}:{number}: {record}; mend or remove that line")
        yield record


def read_records(
    path: Path,
    *keys: str,
    tell: Callable[[str], None] = logger.warning,
    tail_bytes: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of lines that only tells what happened, damaged ones passed over.

    Args:
        keys: which each object must have.
        tell: gets a sentence on what was passed over, at the end.
        tail_bytes: read whole lines of the last bytes alone.
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
        tell(f"{path}: {lines} passed over (line {shown})")


def _records(
    path: Path, keys: tuple[str, ...], tail_bytes: int | None = None
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Yield the number of each line with its end, and its object or what is wrong with it.

    Args:
        tail_bytes: begin with the first whole line of the last bytes, as number 1.
    """
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
    """Whether a file ends in a line without its end, as a kill leaves it."""
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # it is not there, or empty
        return False


def mend_tail(path: Path) -> None:
    """Cut off a last line that a kill left without its end, so that the next append is clean."""
    if is_torn(path):
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of a value's canonical JSON: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
