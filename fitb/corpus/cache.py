"""Files of a remote shard set: fetched with patience, kept on this node within a bound.

All processes of a node share the folder. Beside each file lies a lock: held alone while the file is
fetched or removed, shared while it is being mapped. The kernel frees the locks of a killed process,
so a `.part` whose lock is free has no owner. A file removed while it is mapped keeps its pages.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitb.corpus.remote import Remote
from fitb.corpus.tokenizer import tokenizer_fingerprint
from fitb.errors import ConfigError, DataError, SystemFault
from fitb.fsio import folder_written_whole, naming_full_disk, sha256_file, sha256_json

GB = 1e9
TOKENIZER = "tokenizer"  # folder of a set
_PART, _LOCK = ".part", ".lock"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheSettings:
    """Where remote files are kept, and for how long a fetch is tried.

    Args:
        folder: on this node; None takes $SLURM_TMPDIR, else a folder of this user in $TMPDIR.
        max_gb: of all files together, those being fetched included; 1 GB is 1e9 bytes.
        deadline_s: seconds after which a file that no server gives is a fault.
    """

    folder: str | None = None
    max_gb: float = 20.0
    deadline_s: float = 600.0

    def home(self) -> Path:
        """Return the folder, made if need be.

        Raises: ConfigError where it cannot be made, or belongs to another user.
        """
        if self.folder is not None:
            home = Path(self.folder).absolute()
        elif scratch := os.environ.get("SLURM_TMPDIR"):
            home = Path(scratch) / "fitb-cache"
        else:
            home = Path(tempfile.gettempdir()) / f"fitb-cache-{os.getuid()}"
        remedy = "set data.cache_dir to a folder of this node that you may write"
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make cache_dir={home}: {error.strerror}; {remedy}"
            ) from error
        if self.folder is None and home.stat().st_uid != os.getuid():
            raise ConfigError(f"cache_dir={home} belongs to another user; {remedy}")
        return home


@dataclass(frozen=True)
class Expected:
    """What the manifest says of a file."""

    num_bytes: int
    sha256: str


class Cache:
    """Some files of a remote folder, on this node.

    Args:
        remote: where they come from.
        home: folder of all sets; it bounds them together.
        key: names this set, and this version of it.
        expected: every file that may be asked for, by its plain name.
        max_bytes: of all whole files in `home` and those being fetched.
    Raises: ConfigError where one of the files alone is larger than that.
    """

    def __init__(
        self,
        remote: Remote,
        home: Path,
        key: str,
        expected: Mapping[str, Expected],
        max_bytes: int,
    ) -> None:
        self.remote, self.max_bytes, self.folder = remote, max_bytes, home / key
        self._home, self._expected = home, expected
        self._trusted: set[str] = set()  # fetched or hashed by this process
        largest = max(file.num_bytes for file in expected.values())
        if largest > max_bytes:
            raise ConfigError(
                f"data.cache_gb={max_bytes / GB:g} does not hold a file of {largest / GB:.4g} GB of"
                f" {remote.name}; raise it above that"
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[Path]:
        """Yield a file that is what the manifest says; it stays there until the block ends.

        Raises: as `fetch` does.
        """
        path = self.folder / name
        while True:
            self.fetch(name)
            with self.locked(name, shared=True):
                here = self._touch(name)  # it may have been removed between the two locks
                if here and (name in self._trusted or self._is_right(name)):
                    self._trusted.add(name)
                    yield path
                    return
            with self.locked(name), self._accounts():
                if path.exists() and not self._is_right(name):
                    logger.warning("%s is damaged; it is fetched again", path)
                    path.unlink()

    def _is_right(self, name: str) -> bool:
        return sha256_file(self.folder / name) == self._expected[name].sha256

    def fetch(self, name: str, *, wait: bool = True) -> bool:
        """Bring a file to this node unless it is there.

        Args:
            wait: for another process that fetches it.
        Returns: False where another process is fetching it and `wait` is false.
        Raises: MissingFile or DataError where the server refuses, or what it gives is not what the
            manifest says, twice; SystemFault where no server answers in time, the disk is full,
            or the wait was cancelled.
        """
        until_s = time.monotonic() + self.remote.deadline_s
        if self._touch(name):
            return True
        with self.locked(name, wait=wait) as held:
            if not held:
                return False
            if not self._touch(name):
                self._download(name, until_s)
        return True

    @contextlib.contextmanager
    def locked(self, name: str, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a name; yield False where another holds it and `wait` is false."""
        with _lock(self.folder / (name + _LOCK), shared) as take:
            while not (held := take()) and wait:
                self.remote.pause()
            yield held

    def _touch(self, name: str) -> bool:
        """Note that a file is in use; return whether it is there."""
        path = self.folder / name
        try:
            os.utime(path)
            return path.stat().st_size == self._expected[name].num_bytes
        except FileNotFoundError:
            return False

    def _download(self, name: str, until_s: float) -> None:
        """Fetch a file under its lock: twice, if the first copy is not what the manifest says."""
        expected, found = self._expected[name], ""
        part = self.folder / f"{name}.{expected.num_bytes}{_PART}"
        for _ in range(2):
            self._make_room(part, expected.num_bytes, until_s)
            try:
                self.remote.fetch(name, part, until_s)
                found = sha256_file(part)
                if found == expected.sha256:
                    with self._accounts():
                        part.replace(self.folder / name)
                    self._trusted.add(name)
                    return
            finally:
                part.unlink(missing_ok=True)
            logger.warning("%s/%s came damaged: sha256 %s", self.remote.name, name, found)
        raise DataError(
            f"{self.remote.name}/{name} is damaged: expected sha256 {expected.sha256}, found"
            f" {found}, fetched twice; copy the set there again"
        )

    @contextlib.contextmanager
    def _accounts(self) -> Iterator[None]:
        """Hold the lock under which files are counted, removed, and given their names."""
        with _lock(self._home / ("accounts" + _LOCK)) as take:
            while not take():
                self.remote.pause()
            yield

    def _make_room(self, part: Path, num_bytes: int, until_s: float) -> None:
        """Remove the files unused for longest until `part` fits, and leave it there to be counted.

        A file is safe while its lock is held, so there may be nothing to remove for a moment.
        """
        while True:
            with self._accounts(), naming_full_disk(part):
                used, files = self._count(part)
                for _, size, path in sorted(files):
                    if used + num_bytes <= self.max_bytes:
                        break
                    used -= size if _remove_unheld(path, path) else 0
                if used + num_bytes <= self.max_bytes:
                    part.touch()
                    return
            if time.monotonic() >= until_s:
                raise SystemFault(
                    f"no room for {num_bytes} bytes in {self._home}: all of"
                    f" data.cache_gb={self.max_bytes / GB:g} is in use or being fetched; raise it,"
                    " or name a data.cache_dir that no other job fills"
                )
            self.remote.pause()

    def _count(self, besides: Path) -> tuple[int, list[tuple[int, int, Path]]]:
        """Return bytes used, and (time of last use, bytes, path) of each whole file."""
        used, files = 0, []
        for path in self._home.glob("*/*"):
            if path.suffix == _LOCK or path == besides or not path.is_file():
                continue
            if path.suffix == _PART:
                name, _, size = path.name.removesuffix(_PART).rpartition(".")
                if not _remove_unheld(path, path.with_name(name)):
                    used += int(size)  # of the whole; the part still grows
            else:
                stat = path.stat()
                used += stat.st_size
                files.append((stat.st_mtime_ns, stat.st_size, path))
        return used, files


def open_cache(remote: Remote, manifest: dict[str, Any], settings: CacheSettings) -> Cache:
    """Make a cache for the shards of a set, and bring the tokenizer beside them.

    Returns: the cache; its folder has the tokenizer of the manifest in TOKENIZER.
    Raises: DataError where a name of the manifest is no plain name, or the tokenizer is another;
        what Remote, Cache and CacheSettings raise.
    """
    expected = {}
    for entry in manifest["shards"]:
        expected[entry["file"]] = Expected(entry["bytes"], entry["sha256"])
        if "documents_file" in entry:
            expected[entry["documents_file"]] = Expected(
                entry["documents_bytes"], entry["documents_sha256"]
            )
    tokenizer = manifest["tokenizer"]
    for name in (*expected, *tokenizer["files"]):
        if name in (".", "..") or Path(name).name != name:
            raise DataError(
                f"the manifest of {remote.name} names the file {name!r}, expected a name without"
                " folders; run `fitb prepare` again"
            )
    key = sha256_json([remote.name, manifest["fingerprint"]])[:32]
    cache = Cache(remote, settings.home(), key, expected, int(settings.max_gb * GB))
    with cache.locked(TOKENIZER):
        _fetch_tokenizer(remote, cache.folder / TOKENIZER, tokenizer)
    return cache


def _fetch_tokenizer(remote: Remote, folder: Path, described: dict[str, Any]) -> None:
    """Fetch a tokenizer unless the right one is there: twice, if the first is another."""
    for tries_left in (2, 1, 0):
        found = None
        with contextlib.suppress(DataError, UnicodeDecodeError):  # missing, or damaged
            found = tokenizer_fingerprint(folder)
        if found == described["fingerprint"]:
            return
        if tries_left:
            with folder_written_whole(folder) as scratch:
                for name in described["files"]:
                    remote.fetch(f"{TOKENIZER}/{name}", scratch / name)
    raise DataError(
        f"{remote.name}/{TOKENIZER} is not the tokenizer of these shards: expected fingerprint"
        f" {described['fingerprint']}, found {found}; copy the set there again"
    )


@contextlib.contextmanager
def _lock(path: Path, shared: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield a function that tries to take a lock; the lock ends with the block, or the process."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take() -> bool:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        yield take
    finally:
        os.close(handle)


def _remove_unheld(path: Path, file: Path) -> bool:
    """Remove `path` unless a process holds the lock of `file`; return whether it is gone."""
    with _lock(file.with_name(file.name + _LOCK)) as take:
        if not take():
            return False
        path.unlink(missing_ok=True)
    return True
