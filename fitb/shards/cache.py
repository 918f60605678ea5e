"""Files of a remote shard set: fetched with patience, kept on this node within a bound.

All processes of a node share the folder. A file's lock is held alone while it is fetched or
removed, shared while it is being mapped, so a part whose lock is free has no owner. A file removed
while it is mapped keeps its pages. Only what fitb put there is counted and removed (`marked`).

    fitb-shard-cache-UID/                 in data.cache_dir
        fitb-cache.lock                   the mark; held while files are counted, removed or placed
        KEY/                              a set; KEY is the hash of set.json
            set.json                      the mark: the names of its files, and their bytes
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
from typing import Any

from fitb.base.errors import ConfigError, DataError, SystemFault
from fitb.base.fsio import naming_full_disk, sha256_file, sha256_json
from fitb.shards.cache_files import LOCK, PART, Entry, entered, entry_of, make, opened, take
from fitb.shards.remote import Remote
from fitb.shards.tokenizer import tokenizer_fingerprint

GB = 1e9
TOKENIZER = "tokenizer"  # folder of a set
_SET_MARK = "set.json"
# Not among what a fitb without marks takes for shards of its own, where it is at work there too.
_HOME_MARK = "fitb-cache" + LOCK
_HOME_CONTENT = b"fitb keeps shards of remote sets here, and removes them.\n"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheSettings:
    """Where remote files are kept, and for how long a fetch is tried.

    Args:
        folder: on this node, to make a folder for the cache in; None takes $SLURM_TMPDIR, else
            $TMPDIR.
        max_gb: of all files together, those being fetched included; 1 GB is 1e9 bytes.
        deadline_s: seconds after which a file that no server gives is a fault.
    """

    folder: str | None = None
    max_gb: float = 20.0
    deadline_s: float = 600.0

    def home(self) -> Path:
        """Return the folder of the cache, made and marked if need be.

        Raises: ConfigError where it cannot be made, or is not one that fitb made for this user;
            SystemFault where the disk is full.
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
                " data.cache_dir to a folder of this node that you may write"
            ) from error
        return home


@dataclass(frozen=True)
class Expected:
    """What the manifest says of a file."""

    num_bytes: int
    sha256: str


class ShardCache:
    """Some files of a remote folder, on this node.

    Args:
        remote: where they come from.
        settings: where they are kept, with those of all other sets; the bound of all together.
        expected: every file that may be asked for, by its plain name.
        version: what tells this set from others with the same files.
    Raises: ConfigError where one of the files alone is larger than the bound; as `home` does.
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
                f"data.cache_gb={self.max_bytes / GB:g} does not hold a file of"
                f" {largest / GB:.4g} GB of {remote.name}; raise it above that"
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
        """Yield a descriptor of the set's folder, made again where somebody has removed it."""
        with contextlib.ExitStack() as stack:
            for again in (True, False):
                try:
                    home = stack.enter_context(entered(self._home))
                    folder = stack.enter_context(entered(self.folder, home))
                    # What cleans a folder of temporary files goes by these times.
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
        """Take the lock of a file; return False where another holds it and `wait` is false."""
        while not (taken := take(entry.lock, shared=shared)) and wait:
            self.remote.pause()
        return taken

    @contextlib.contextmanager
    def pinned(self, name: str) -> Iterator[Path]:
        """Yield a file that is what the manifest says; it stays there until the block ends.

        Raises: as `fetch` does.
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
                        logger.warning("%s is damaged; it is fetched again", entry.path)
                        entry.clear()

    def _is_right(self, name: str) -> bool:
        return sha256_file(self.folder / name) == self._expected[name].sha256

    def _is_here(self, entry: Entry) -> bool:
        """Whether a file is there in its size; then it has been used now."""
        here = entry.size() == self._expected[entry.path.name].num_bytes
        if here:
            entry.note_use()
        return here

    def fetch(self, name: str, *, wait: bool = True) -> bool:
        """Bring a file to this node unless it is there.

        Args:
            wait: for another process that fetches it.
        Returns: False where another process is fetching it and `wait` is false.
        Raises: MissingFile or DataError where the server refuses, or what it gives is not what the
            manifest says, twice; SystemFault where no server answers in time, the disk is full,
            or the wait was cancelled; ConfigError where something in its place is not fitb's.
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
        """Fetch a file under its lock: twice, if the first copy is not what the manifest says."""
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
                logger.warning("%s/%s came damaged: sha256 %s", self.remote.name, name, found)
            finally:
                os.close(part)
                entry.drop_part()
        raise DataError(
            f"{self.remote.name}/{name} is damaged: expected sha256 {expected.sha256}, found"
            f" {found}, fetched twice; copy the set there again"
        )

    def fetch_tokenizer(self, described: Mapping[str, Any]) -> None:
        """Fetch the tokenizer unless the right one is there: twice, if the first is another.

        Args:
            described: the manifest's entry.
        Raises: DataError where it stays another; ConfigError where a file in its place is not
            fitb's; as Remote.fetch does.
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
        """Hold the lock under which files are counted, removed, and given their names.

        Yields a descriptor of the folder of all sets.
        """
        with entered(self._home) as home, opened(home, self._home / _HOME_MARK) as lock:
            while not take(lock):
                self.remote.pause()
            yield home

    def _make_room(self, entry: Entry, num_bytes: int, until_s: float) -> int:
        """Remove the files unused for longest until another fits; return its part, empty.

        A file is safe while its lock is held, so there may be nothing to remove for a moment.
        """
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
                    " or name a data.cache_dir that no other job fills"
                )
            self.remote.pause()

    def _count(self, home: int) -> tuple[int, list[tuple[int, int, Path]]]:
        """Return bytes used, and (time of last use, bytes, path) of each whole file."""
        used, files = 0, []
        for entry, num_bytes in _entries(home, self._home):
            if entry.owns(entry.part):
                if take(entry.lock):
                    entry.drop_part()  # of a killed process
                else:
                    used += num_bytes  # of the whole; the part still grows
            if entry.owns(entry.path):
                size = entry.size() or 0
                used += size
                files.append((entry.last_use(), size, entry.path))
        return used, files


def open_cache(remote: Remote, manifest: dict[str, Any], settings: CacheSettings) -> ShardCache:
    """Make a cache for the shards of a set, and bring the tokenizer beside them.

    Returns: the cache; its folder has the tokenizer of the manifest in TOKENIZER.
    Raises: DataError where a name of the manifest is one of the cache's own, or the tokenizer is
        another; what Remote, ShardCache and CacheSettings raise.
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
    """Return the name of a set's folder: its mark, copied into another, means nothing there."""
    return hashlib.sha256(mark).hexdigest()[:32]


def _entries(home: int, path: Path) -> Iterator[tuple[Entry, int]]:
    """Yield the files of all sets that may be there, and the bytes that they should have.

    What is no folder with the mark of a set, or stands where a lock should, is passed over.
    """
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
    """Return the names and bytes that the mark of a set tells; none where it is not its own."""
    with opened(folder, path / _SET_MARK) as handle:
        mark = os.pread(handle, os.fstat(handle).st_size, 0)
    found: dict[str, int] = json.loads(mark)["files"] if _key(mark) == path.name else {}
    return found


def _removed(home: int, path: Path) -> bool:
    """Remove a file of a set unless a process holds its lock; return whether it is gone."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(ConfigError, FileNotFoundError))
        folder = stack.enter_context(entered(path.parent, home))
        entry = stack.enter_context(entry_of(folder, path))
        if take(entry.lock):
            entry.clear()
            return True
    return False
