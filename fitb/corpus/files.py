"""Names of input files to bytes: globs, URLs, compression, and errors that say which file."""

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
# First bytes of what these read; a frame of Zstandard may be one to skip.
_COMPRESSED = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}
_NO_MORE_OF_IT = re.compile("Not a gzipped file|Unknown frame descriptor")
HEAD_BYTES = 10
_FED_BYTES = 1 << 14  # at a time: highly compressible, they are many times as much


@dataclass(frozen=True)
class InputFile:
    """A file that exists.

    Args:
        name: path or URL.
        num_bytes: as stored.
        stamp: changes when the file does: time of change, or what its server says.
    """

    name: str
    num_bytes: int
    stamp: str = ""


def failures() -> tuple[type[Exception], ...]:
    """What reading may raise: the libraries of remote files only where something loaded them."""
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
    """Turn what libraries raise while they read into an error of one line that names the file.

    Raises: DataError; SystemFault where a network or server failed, and trying again may help;
        ConfigError where a protocol's library is not installed.
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
            raise SystemFault(f"{reason}; start again, what is done stays") from error
        raise DataError(f"{reason}; {remedy}") from error


def _is_passing(error: BaseException) -> bool:
    """Whether it is the way to a remote file that failed, not the file."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _is_passing(error.__cause__)  # fsspec's word for any failure to ask for the size
    refused = getattr(error, "status", None) in (404, 410)  # a key that ran out may be renewed
    settled = (FileNotFoundError, BadGzipFile, ValueError, EOFError)
    content = (*settled, zlib.error, lzma.LZMAError)
    told_by_arrow = type(error) is OSError and error.errno is None  # of bytes that it cannot unpack
    return not refused and not told_by_arrow and not isinstance(error, content)


def first_line(error: BaseException) -> str:
    """Return the first line of a message, or the name of an error that has none."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (reason.strip().splitlines() or [type(error).__name__])[0].rstrip(" .")


def expand(patterns: Sequence[str]) -> list[InputFile]:
    """Return the files that names and globs mean, each once, a glob's in sorted order.

    Args:
        patterns: paths, URLs, or globs of either; ** crosses folders.
    Raises: DataError that names what is missing, empty or a folder.
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
        # A URL first means itself: a query holds a question mark and is no glob.
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
            f"the server does not tell the size of {name}; download it and name the copy"
        )
    stamps = (info.get(key) for key in ("ETag", "etag", "LastModified", "mtime", "created"))
    return InputFile(name, size, str(next((stamp for stamp in stamps if stamp), "")))


def _nothing(pattern: str, is_folder: bool, is_glob: bool) -> DataError:
    what = "is a folder" if is_folder else "matches no file" if is_glob else "does not exist"
    if "://" in pattern and not is_folder:
        what += ", or cannot be reached"
    return DataError(f"input {pattern} {what}; name a file, or a glob such as 'texts/*.txt'")


def compression_of(name: str) -> str | None:
    """Return the compression that a suffix (gz, bz2, xz, zst) means, None without one.

    Raises: DataError for an archive.
    """
    from fsspec.utils import infer_compression

    compression: str | None = infer_compression(name)
    if compression == "zip":
        raise DataError(f"{name} is a zip archive, which may hold many files; unpack it")
    return compression


@contextlib.contextmanager
def opened(name: str, block_bytes: int = 1 << 22) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed by its suffix.

    Args:
        name: path or URL.
        block_bytes: what a remote file fetches at once.
    Raises: DataError, also for what goes wrong while the caller reads.
    """
    import fsspec

    compression = compression_of(name)
    with naming(name), contextlib.ExitStack() as stack:
        if "://" in name:
            fs, path = fsspec.core.url_to_fs(name)
        else:  # fsspec reads more than a path into a colon
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
    """Say what is wrong with a file in which something else than compressed data was met."""
    if not _COMPRESSED[compression].match(head):
        return f"{name} is no {compression}, though its suffix says so; take the suffix away"
    return (
        f"{name}: something that is no {compression} follows the compressed data; unpack it with"
        f" `{compression} -dc`, which writes all that is before and warns, and name what it wrote"
    )


class _ZstandardFrames(io.RawIOBase):
    """Frames of Zstandard one after another, with windows of up to 2 GB, as `zstd --long=31` has.

    The readers of zstandard and fsspec take a torn file for a whole one, Arrow's refuses windows of
    more than 128 MB; it is as fast as this one.
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
                    raise EOFError("its last frame is torn")
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
    """Refuse a file whose first bytes say that it is something else than text.

    Args:
        head: the first HEAD_BYTES bytes, or all of them.
    Raises: DataError that says what it is and what to do.
    """
    for what, magic in _MAGIC.items():
        if re.match(magic, head, re.DOTALL):
            raise DataError(f"{name} is not UTF-8 text but {what}")
