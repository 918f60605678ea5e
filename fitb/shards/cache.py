"""LRU disk cache of remote shard sets, bounded in size and shared by all processes of a node.

The lock of a file is exclusive while the file is fetched or removed, and shared while it is being
mapped, so a partial file whose lock is free has no owner. A file that is removed while mapped stays
readable. Only files that fitb put there are counted and removed (cache_files.py).

    fitb-shard-cache-UID/                 in data.cache_dir
        fitb-cache.lock                   marker; locked while files are counted, removed or renamed
        KEY/                              a shard set; KEY is the hash of set.json
            set.json                      marker: names and bytes of its files
            train-00000.arrow .lock .part
            tokenizer/
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fitb.base.errors import ConfigError, DataError, SystemFault
from fitb.base.fsio import naming_full_disk, sha256_file, sha256_json
from fitb.shards.cache_files import LOCK, PART, Entry, entered, entry_of, make, opened, take
from fitb.shards.remote import Remote
from fitb.shards.tokenizer import tokenizer_fingerprint

GB = 1e9
TOKENIZER = "tokenizer"  # folder in a shard set
_SET_MARK = "set.json"
# A name that older versions, which know no markers, do not take for a shard of theirs.
_HOME_MARK = "fitb-cache" + LOCK
_HOME_CONTENT = b"fitb keeps shards of remote sets here, and removes them.\n"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheSettings:
    """Place and size of the cache, and time limit of a fetch.

    Args:
        folder: folder of this node in which to create the cache; None: $SLURM_TMPDIR, else $TMPDIR.
        max_gb: size of all files together in 1e9 bytes, those being fetched included.
        deadline_s: seconds after which fetching a file fails, all tries together.
    """

    folder: str | None = None
    max_gb: float = 20.0
    deadline_s: float = 600.0

    def home(self) -> Path:
        """Return the folder of the cache; create it with its marker if need be.

        Raises: ConfigError if it cannot be created, or fitb did not create it for this user;
            SystemFault if the disk is full.
        """
        where = self.folder
        if where is None:
            where = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
        home = Path(where).absolute() / f"fitb-shard-cache-{os.getuid()}"
        try:
            with naming_full_disk(home):
                home.parent.mkdir(parents=True, exist_ok=True)
                make(home, _HOME_MARK, _HOME_CONTENT)
        except OSError as error:
            raise ConfigError(
                f"cannot make {home} for data.cache_dir={self.folder}: {error.strerror}; set"
                " data.cache_dir to a writable folder of this node"
            ) from error
        return home


class Expected(NamedTuple):
    """Size and sha256 of a file according to the manifest."""

    num_bytes: int
    sha256: str


class ShardCache:
    """The cached files of one remote shard set.

    Args:
        remote: folder to fetch files from.
        settings: settings of the cache, which all shard sets share.
        expected: size and sha256 of every file that may be requested, by name.
        version: hash that distinguishes this set from others with the same files.
    Raises: ConfigError if one file is larger than the cache; as `home`.
    """

    def __init__(
        self,
        remote: Remote,
        settings: CacheSettings,
        expected: Mapping[str, Expected],
        version: str,
    ) -> None:
        self.remote, self.max_bytes = remote, int(settings.max_gb * GB)
        self._settings, self._expected = settings, expected
        self._trusted: set[str] = set()  # fetched or hashed by this process
        largest = max(file.num_bytes for file in expected.values())
        if largest > self.max_bytes:
            raise ConfigError(
                f"data.cache_gb={self.max_bytes / GB:g} is smaller than a file of"
                f" {remote.name} of {largest / GB:.4g} GB; raise it above that"
            )
        sums = {name: file.sha256 for name, file in expected.items()}
        described = {
            "from": remote.name,
            "version": sha256_json([version, sums]),
            "files": {name: file.num_bytes for name, file in expected.items()},
        }
        self._mark = (json.dumps(described, indent=1) + "\n").encode()
        self._home = settings.home()
        self.folder = self._home / _key(self._mark)
        self._make()

    def _make(self) -> None:
        self._settings.home()
        with naming_full_disk(self.folder), entered(self._home) as home:
            make(self.folder, _SET_MARK, self._mark, home)

    @contextlib.contextmanager
    def _entered(self) -> Iterator[int]:
        """Yield a descriptor of the set's folder, created again if somebody removed it."""
        with contextlib.ExitStack() as stack:
            for again in (True, False):
                try:
                    home = stack.enter_context(entered(self._home))
                    folder = stack.enter_context(entered(self.folder, home))
                    # Cleaners of temporary folders look at these times.
                    os.utime(_HOME_MARK, dir_fd=home, follow_symlinks=False)
                    os.utime(_SET_MARK, dir_fd=folder, follow_symlinks=False)
                    break
                except FileNotFoundError:
                    if not again:
                        raise
                    self._make()
            yield folder

    @contextlib.contextmanager
    def _entry(self, name: str) -> Iterator[Entry]:
        path = self.folder / name
        with naming_full_disk(path), self._entered() as folder, entry_of(folder, path) as entry:
            yield entry

    def _take(self, entry: Entry, *, shared: bool = False, wait: bool = True) -> bool:
        """Acquire the lock of a file; return False if another process holds it and not `wait`."""
        while not (taken := take(entry.lock, shared=shared)) and wait:
            self.remote.pause()
        return taken

    @contextlib.contextmanager
    def pinned(self, name: str) -> Iterator[Path]:
        """Yield the path of a verified file, which is not removed until the block ends.

        Raises: as `fetch`.
        """
        while True:
            self.fetch(name)
            with self._entry(name) as entry:
                self._take(entry, shared=True)
                here = self._is_here(entry)  # it may have been removed between the two locks
                if here and (name in self._trusted or self._is_right(name)):
                    self._trusted.add(name)
                    yield entry.path
                    return
            with self._entry(name) as entry:
                self._take(entry)
                with self._accounts():
                    if self._is_here(entry) and not self._is_right(name):
                        logger.warning("%s is damaged; fetching it again", entry.path)
                        entry.clear()

    def _is_right(self, name: str) -> bool:
        return sha256_file(self.folder / name) == self._expected[name].sha256

    def _is_here(self, entry: Entry) -> bool:
        """Whether a file of the right size exists; if so, update its time of last use."""
        here = entry.size() == self._expected[entry.path.name].num_bytes
        if here:
            entry.note_use()
        return here

    def fetch(self, name: str, *, wait: bool = True) -> bool:
        """Fetch a file to this node unless it is cached.

        Args:
            name: name of the file.
            wait: whether to wait for another process that is fetching it.
        Returns: False if another process is fetching it and not `wait`.
        Raises: MissingFile or DataError if the server refuses, or sends a wrong file twice;
            SystemFault if no server answers in time, the disk is full, or the wait was cancelled;
            ConfigError if a file of this name is not fitb's.
        """
        until_s = time.monotonic() + self.remote.deadline_s
        with self._entry(name) as entry:
            if self._is_here(entry):
                return True
            if not self._take(entry, wait=wait):
                return False
            if not self._is_here(entry):
                self._download(entry, until_s)
        return True

    def _download(self, entry: Entry, until_s: float) -> None:
        """Fetch a file whose lock is held; once more if the first copy is wrong."""
        name, found = entry.path.name, ""
        expected = self._expected[name]
        for _ in range(2):
            part = self._make_room(entry, expected.num_bytes, until_s)
            try:
                self.remote.fetch(name, part, entry.part, until_s)
                os.lseek(part, 0, os.SEEK_SET)
                found = sha256_file(Path(f"/dev/fd/{part}"))
                if found == expected.sha256:
                    with self._accounts():
                        entry.place()
                    self._trusted.add(name)
                    return
                logger.warning("%s/%s arrived damaged: sha256 %s", self.remote.name, name, found)
            finally:
                os.close(part)
                entry.drop_part()
        raise DataError(
            f"{self.remote.name}/{name} is damaged: expected sha256 {expected.sha256}, found"
            f" {found}, fetched twice; copy the set there again"
        )

    def fetch_tokenizer(self, described: Mapping[str, Any]) -> None:
        """Fetch the tokenizer unless it is cached; once more if the first copy is wrong.

        Args:
            described: manifest entry of the tokenizer.
        Raises: DataError if both copies are wrong; ConfigError if a file of this name is not
            fitb's; as Remote.fetch.
        """
        where, found = self.folder / TOKENIZER, None
        with self._entry(TOKENIZER) as whole:
            self._take(whole)
            for tries_left in (2, 1, 0):
                with contextlib.suppress(DataError, UnicodeDecodeError):  # missing, or damaged
                    found = tokenizer_fingerprint(where)
                if found == described["fingerprint"]:
                    return
                if tries_left:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(TOKENIZER, 0o700, dir_fd=whole.folder)
                    with entered(where, whole.folder) as folder:
                        for name in described["files"]:
                            self._fetch_small(folder, where / name)
        raise DataError(
            f"{self.remote.name}/{TOKENIZER} is not the tokenizer of these shards: expected"
            f" fingerprint {described['fingerprint']}, found {found}; copy the set there again"
        )

    def _fetch_small(self, folder: int, path: Path) -> None:
        with entry_of(folder, path) as entry:
            self._take(entry)
            entry.clear()
            part = entry.begin()
            try:
                self.remote.fetch(f"{TOKENIZER}/{path.name}", part, entry.part)
                entry.place()
            finally:
                os.close(part)
                entry.drop_part()

    @contextlib.contextmanager
    def _accounts(self) -> Iterator[int]:
        """Hold the lock for counting, removing and renaming files; yield the home's descriptor."""
        with entered(self._home) as home, opened(home, self._home / _HOME_MARK) as lock:
            while not take(lock):
                self.remote.pause()
            yield home

    def _make_room(self, entry: Entry, num_bytes: int, until_s: float) -> int:
        """Remove files used longest ago until another fits; return its empty partial file."""
        while True:
            with self._accounts() as home:
                entry.clear()
                used, files = self._count(home)
                for _, size, path in sorted(files):
                    if used + num_bytes <= self.max_bytes:
                        break
                    used -= size if _removed(home, path) else 0
                if used + num_bytes <= self.max_bytes:
                    return entry.begin()
            if time.monotonic() >= until_s:
                raise SystemFault(
                    f"no room for {num_bytes} bytes in {self._home}: all of"
                    f" data.cache_gb={self.max_bytes / GB:g} is in use or being fetched; raise it,"
                    " or name a data.cache_dir that no other job uses"
                )
            self.remote.pause()

    def _count(self, home: int) -> tuple[int, list[tuple[int, int, Path]]]:
        """Return bytes used, and (time of last use in ns, bytes, path) of each complete file."""
        used, files = 0, []
        for entry, num_bytes in _entries(home, self._home):
            if entry.owns(entry.part):
                if take(entry.lock):
                    entry.drop_part()  # left by a killed process
                else:
                    used += num_bytes  # its final size
            if entry.owns(entry.path):
                size = entry.size() or 0
                used += size
                files.append((entry.last_use(), size, entry.path))
        return used, files


def open_cache(remote: Remote, manifest: dict[str, Any], settings: CacheSettings) -> ShardCache:
    """Open the cache of a shard set, and fetch its tokenizer into the folder TOKENIZER.

    Raises: DataError if a file name of the manifest is reserved by the cache, or the tokenizer is
        wrong; as Remote, ShardCache and CacheSettings.
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
        if name in (_SET_MARK, TOKENIZER) or name.endswith((LOCK, PART)):
            raise DataError(
                f"the manifest of {remote.name} names the file {name!r}, expected none of"
                f" {_SET_MARK}, {TOKENIZER}, *{LOCK} and *{PART}; run `fitb prepare` again"
            )
    version = sha256_json([manifest["fingerprint"], tokenizer["fingerprint"]])
    cache = ShardCache(remote, settings, expected, version)
    cache.fetch_tokenizer(tokenizer)
    return cache


def _key(mark: bytes) -> str:
    """Return the folder name of a set, which ties its marker to this folder."""
    return hashlib.sha256(mark).hexdigest()[:32]


def _entries(home: int, path: Path) -> Iterator[tuple[Entry, int]]:
    """Yield the files of sets with a valid marker that may exist, and their expected bytes."""
    for key in os.listdir(home):
        if not re.fullmatch("[0-9a-f]{32}", key):
            continue
        with contextlib.suppress(ConfigError, FileNotFoundError), entered(path / key, home) as set_:
            there = set(os.listdir(set_))
            for name, num_bytes in _recorded(set_, path / key).items():
                if name + LOCK in there and not there.isdisjoint({name, name + PART}):
                    at = path / key / name
                    with contextlib.suppress(ConfigError), entry_of(set_, at) as entry:
                        yield entry, num_bytes


def _recorded(folder: int, path: Path) -> dict[str, int]:
    """Return names and bytes of the files in a set's marker; none if it is another folder's."""
    with opened(folder, path / _SET_MARK) as handle:
        mark = os.pread(handle, os.fstat(handle).st_size, 0)
    found: dict[str, int] = json.loads(mark)["files"] if _key(mark) == path.name else {}
    return found


def _removed(home: int, path: Path) -> bool:
    """Remove a file of a set unless a process holds its lock; return whether it was removed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(ConfigError, FileNotFoundError))
        folder = stack.enter_context(entered(path.parent, home))
        entry = stack.enter_context(entry_of(folder, path))
        if take(entry.lock):
            entry.clear()
            return True
    return False
