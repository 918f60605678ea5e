"""Files that are either whole or not there: atomic writes, append-only lines, checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fitb.errors import DataError, SystemFault
from fitb.modes import match_modes


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
    """Make renames inside a folder survive a power cut."""
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
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming_full_disk(path):
        try:
            with open(part, "wb") as file:
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
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    with naming_full_disk(path):
        try:
            yield part
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def folder_written_whole(path: Path, room: Path | None = None) -> Iterator[Path]:
    """Yield a scratch folder that takes the place of `path` when the block ends well.

    Args:
        path: the folder to make or replace.
        room: where the scratch folders are, which must exist; None is beside `path`.
    """
    if room is None:
        room = path.parent
        room.mkdir(parents=True, exist_ok=True)
    scratch = room / f".{path.name}.{os.getpid()}.part"
    old = room / f".{path.name}.{os.getpid()}.old"
    for leftover in (scratch, old):  # of a killed process that had this one's number
        shutil.rmtree(leftover, ignore_errors=True)
    scratch.mkdir()
    with naming_full_disk(path):
        try:
            yield scratch
            match_modes(scratch)
            if path.exists():
                path.rename(old)
            scratch.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    fsync_dir(path.parent)


def to_json(value: Any, **form: Any) -> str:
    """Return JSON that every reader takes: null where Python has NaN or an infinity."""
    return json.dumps(_finite(value), allow_nan=False, **form)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line, in one write that survives a power cut.

    Raises: SystemFault where the disk or quota is full; the file is as it was.
    """
    handle = open_for_appending(path)
    try:
        append_to(handle, path, record)
    finally:
        os.close(handle)


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


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file of lines; a line torn by a kill, at its end, is left out.

    Raises: DataError naming a line that is no JSON.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(
                        f"{path}:{number} is not JSON ({error}); mend or remove that line"
                    ) from error


def mend_tail(path: Path) -> None:
    """Cut off a last line that a kill left without its end, so that the next append is clean."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


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
