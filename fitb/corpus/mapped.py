"""Memory maps of shard files: checked on first use, few at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from fitb.corpus.cache import Cache
from fitb.errors import DataError
from fitb.fsio import sha256_file

REMEDY = "copy the folder again, or remove it and run `fitb prepare` again"


class MappedShards:
    """The shards that are mapped now; the one unused for longest makes room for the next.

    Args:
        entries: of the manifest, one for each shard.
        folder: of the files.
        cache: brings them there; None where they lie there.
        limit: shards mapped at a time.
    """

    def __init__(
        self, entries: Sequence[dict[str, Any]], folder: Path, cache: Cache | None, limit: int
    ) -> None:
        self._entries, self._folder, self._cache, self._limit = entries, folder, cache, limit
        self._lock = threading.Lock()
        self._locks = [threading.Lock() for _ in entries]  # so that a shard is hashed once
        self._hashed: set[int] = set()
        self._columns: OrderedDict[int, dict[str, NDArray[Any]]] = OrderedDict()

    def columns(self, number: int) -> dict[str, NDArray[Any]]:
        """Return the columns of a shard as read-only views of its file.

        Raises: DataError where the content is not what the manifest says, and what Cache.fetch
            raises.
        """
        with self._locks[number]:
            with self._lock:
                if number in self._columns:
                    self._columns.move_to_end(number)
                    return self._columns[number]
            columns = self._map(number)
            with self._lock:
                self._columns[number] = columns
                while len(self._columns) > self._limit:
                    self._columns.popitem(last=False)
            return columns

    def _map(self, number: int) -> dict[str, NDArray[Any]]:
        name, sha256 = self._entries[number]["file"], self._entries[number]["sha256"]
        if self._cache is not None:
            with self._cache.held(name) as path:
                return _map_columns(path)
        if number not in self._hashed:
            check_content(self._folder / name, sha256)
            self._hashed.add(number)
        return _map_columns(self._folder / name)


def check_content(path: Path, sha256: str) -> None:
    found = sha256_file(path)
    if found != sha256:
        raise DataError(f"{path} is damaged: expected sha256 {sha256}, found {found}; {REMEDY}")


def map_table(path: Path) -> pa.Table:
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _map_columns(path: Path) -> dict[str, NDArray[Any]]:
    table = map_table(path)
    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        array = table.column(name).chunk(0)
        if isinstance(array, pa.FixedSizeListArray):
            flat = array.flatten().to_numpy(zero_copy_only=True)
            columns[name] = flat.reshape(-1, array.type.list_size)
        else:
            columns[name] = array.to_numpy(zero_copy_only=True)
    return columns


def check_size(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {REMEDY}") from error
    if found != expected:
        raise DataError(f"{path} has {found} bytes, expected {expected}; {REMEDY}")
