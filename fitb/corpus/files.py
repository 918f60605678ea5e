"""Opening of input files: globs, URLs, compression, and errors that name the file."""

from __future__ import annotations

import contextlib
import glob
import io
import lzma
import os
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from gzip import BadGzipFile
from typing import IO, Any

from fitb.base.errors import ConfigError, DataError, SystemFault
from fitb.base.redact import redacted
from fitb.shards.remote import is_remote

# First bytes of formats that are not text. A Parquet file goes on with a Thrift field of type i32.
_MAGIC = {
    "Parquet; read it with --source parquet": rb"PAR1\x15",
    "an Arrow file; read its folder with --source hf": rb"ARROW1\x00",
    "gzip; give it the suffix .gz": rb"\x1f\x8b",
    "bzip2; give it the suffix .bz2": rb"BZh[1-9]1AY&SY",
    "xz; give it the suffix .xz": rb"\xfd7zXZ\x00",
    "Zstandard; give it the suffix .zst": rb"\x28\xb5\x2f\xfd",
    "LZ4; unpack it with lz4 -d": rb"\x04\x22\x4d\x18",
    "a zip archive; unpack it": rb"PK\x03\x04",
    "UTF-16; convert it with iconv -f utf-16 -t utf-8": rb"\xff\xfe|\xfe\xff",
}
# First bytes of the formats that are decompressed; Zstandard may begin with a skippable frame.
_COMPRESSED = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}
_NO_MORE_OF_IT = re.compile("Not a gzipped file|Unknown frame descriptor")
HEAD_BYTES = 10
_FED_BYTES = 1 << 14  # decompressed at a time, perhaps to many times as much


@dataclass(frozen=True)
class InputFile:
    """An existing input file.

    Args:
        name: path or URL.
        num_bytes: stored size in bytes.
        stamp: modification time or ETag, which changes when the content does.
    """

    name: str
    num_bytes: int
    stamp: str = ""


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that reading may raise, without importing the remote libraries."""
    kinds: list[type[Exception]] = [
        OSError, EOFError, ImportError, ValueError, zlib.error, lzma.LZMAError
    ]  # fmt: skip
    for module, name in (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
    ):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return tuple(kinds)


@contextlib.contextmanager
def naming(name: str, remedy: str = "check the file and fetch it again") -> Iterator[None]:
    """Turn exceptions of libraries into one-line errors that name the file.

    Args:
        name: path or URL of the file.
        remedy: last part of the message of a DataError.
    Raises: DataError; SystemFault if a network or server failed, so that a retry may help;
        ConfigError if the library of a protocol is not installed.
    """
    name = redacted(name)
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"cannot read {name}: {first_line(error)}; pip install 'fitb[remote]'"
        ) from error
    except failures() as error:
        reason = f"cannot read {name}: {redacted(first_line(error))}"
        if is_remote(name) and _is_passing(error):
            raise SystemFault(f"{reason}; start again, finished work is kept") from error
        raise DataError(f"{reason}; {remedy}") from error


def _is_passing(error: BaseException) -> bool:
    """Whether a remote read failed for a transient reason, not because of the file."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _is_passing(error.__cause__)  # fsspec raises it if any request for the size fails
    refused = getattr(error, "status", None) in (404, 410)  # other codes: keys may be renewed
    settled = (FileNotFoundError, BadGzipFile, ValueError, EOFError)
    content = (*settled, zlib.error, lzma.LZMAError)
    from_arrow = type(error) is OSError and error.errno is None  # bytes that it cannot decompress
    return not refused and not from_arrow and not isinstance(error, content)


def first_line(error: BaseException) -> str:
    """Return the first line of a message, or the name of an error that has none."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (reason.strip().splitlines() or [type(error).__name__])[0].rstrip(" .")


def expand(patterns: Sequence[str]) -> list[InputFile]:
    """Return the files that match, without repeats; the files of one glob are sorted.

    Args:
        patterns: paths, URLs, or globs of either; ** matches any number of folders.
    Raises: DataError that names a pattern which matches no file or a folder.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        local = pattern.removeprefix("file://")
        if "://" in local:
            for file in _expand_url(pattern):
                found.setdefault(file.name, file)
        else:
            for path in _expand_path(os.path.expanduser(local)):
                with naming(path):
                    stat = os.stat(path)
                file = InputFile(path, stat.st_size, str(stat.st_mtime_ns))
                found.setdefault(os.path.realpath(path), file)
    return list(found.values())


def _expand_path(pattern: str) -> list[str]:
    if os.path.isfile(pattern):
        return [pattern]
    paths = [path for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
    if not paths:
        raise _nothing(pattern, os.path.isdir(pattern), glob.has_magic(pattern))
    return paths


def _expand_url(pattern: str) -> list[InputFile]:
    import fsspec

    with naming(pattern, "check the URL and the credentials"):
        fs, path = fsspec.core.url_to_fs(pattern)
        # Try a URL literally first: the question mark of a query is not a glob.
        with contextlib.suppress(FileNotFoundError):
            info = fs.info(path)
            if info["type"] != "file":
                raise _nothing(pattern, True, False)
            return [_sized(pattern if "::" in pattern else fs.unstrip_protocol(path), info)]
        is_glob = glob.has_magic(path) and "::" not in pattern
        infos = fs.glob(path, detail=True) if is_glob else {}
    files = [(name, info) for name, info in sorted(infos.items()) if info["type"] == "file"]
    if not files:
        raise _nothing(pattern, False, is_glob)
    return [_sized(fs.unstrip_protocol(name), info) for name, info in files]


def _sized(name: str, info: dict[str, Any]) -> InputFile:
    size = info.get("size")
    if size is None:
        raise DataError(
            f"the server does not report the size of {name}; download it and name the copy"
        )
    stamps = (info.get(key) for key in ("ETag", "etag", "LastModified", "mtime", "created"))
    return InputFile(name, size, str(next((stamp for stamp in stamps if stamp), "")))


def _nothing(pattern: str, is_folder: bool, is_glob: bool) -> DataError:
    what = "is a folder" if is_folder else "matches no file" if is_glob else "does not exist"
    if "://" in pattern and not is_folder:
        what += ", or cannot be reached"
    return DataError(f"input {pattern} {what}; name a file, or a glob such as 'texts/*.txt'")


def compression_of(name: str) -> str | None:
    """Return the compression by file suffix (gz, bz2, xz, zst), or None.

    Raises: DataError if it is a zip archive.
    """
    from fsspec.utils import infer_compression

    compression: str | None = infer_compression(name)
    if compression == "zip":
        raise DataError(f"{name} is a zip archive, which may hold many files; unpack it")
    return compression


@contextlib.contextmanager
def opened(name: str, block_bytes: int = 1 << 22) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed according to its suffix.

    Args:
        name: path or URL.
        block_bytes: bytes per request to a remote file.
    Raises: as `naming`, also for errors while the caller reads.
    """
    import fsspec

    compression = compression_of(name)
    with naming(name), contextlib.ExitStack() as stack:
        if "://" in name:
            fs, path = fsspec.core.url_to_fs(name)
        else:  # fsspec would interpret a colon in a path
            fs, path = fsspec.filesystem("file"), os.path.abspath(name)
        inner = None if compression == "zstd" else compression
        file = stack.enter_context(fs.open(path, "rb", block_bytes, compression=inner))
        if compression == "zstd":
            file = stack.enter_context(io.BufferedReader(_ZstandardFrames(file)))
        try:
            yield file
        except (OSError, ValueError) as error:
            if not _NO_MORE_OF_IT.search(str(error)):
                raise
            head = fs.cat_file(path, 0, HEAD_BYTES)
            raise DataError(_foreign(redacted(name), str(compression), head)) from error


def _foreign(name: str, compression: str, head: bytes) -> str:
    """Return the message for a file that holds other than compressed data."""
    if not _COMPRESSED[compression].match(head):
        return f"{name} is not {compression}, though its suffix says so; remove the suffix"
    return (
        f"{name}: the compressed data is followed by bytes that are not {compression}; decompress"
        f" it with `{compression} -dc`, which warns and writes all before them, and name the output"
    )


class _ZstandardFrames(io.RawIOBase):
    """Reader of concatenated Zstandard frames, with windows of up to 2 GB (`zstd --long=31`).

    The readers of zstandard and fsspec do not notice a truncated file, and Arrow's, which is as
    fast, refuses windows of more than 128 MB.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._raw, self._out = file, b"", b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._out:
            self._raw = self._raw or self._file.read(_FED_BYTES)
            if not self._raw:
                if self._frame is not None:
                    raise EOFError("its last frame is cut off")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            try:
                self._out = self._frame.decompress(self._raw)
            except zstandard.ZstdError as error:
                raise ValueError(str(error)) from error
            self._raw = self._frame.unused_data
            self._frame = None if self._frame.eof else self._frame
        size = min(len(buffer), len(self._out))
        buffer[:size], self._out = self._out[:size], self._out[size:]
        return size


def check_is_text(name: str, head: bytes) -> None:
    """Raise DataError if the first bytes of a file are those of another format than text.

    Args:
        name: path or URL of the file, for the message.
        head: the first HEAD_BYTES bytes of the file, or all of them.
    """
    for what, magic in _MAGIC.items():
        if re.match(magic, head, re.DOTALL):
            raise DataError(f"{name} is not UTF-8 text but {what}")
