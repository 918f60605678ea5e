"""Memory-mapped shard files, a bounded number at a time, hashed when they are mapped."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fitb.base.errors import DataError, SystemFault
from fitb.shards.cache import ShardCache

REMEDY = "copy the folder again, or remove it and run `fitb prepare` again"


def id_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest unsigned integer type for ids below vocab_size."""
    return np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32


class MappedShards:
    """LRU cache of memory-mapped shards.

    Args:
        manifest: manifest of the shard set.
        entries: manifest entries of the shards of one split.
        folder: folder of the files.
        cache: cache that fetches remote files into the folder; None for a local set.
        limit: largest number of shards mapped at a time.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        entries: Sequence[dict[str, Any]],
        folder: Path,
        cache: ShardCache | None,
        limit: int,
    ) -> None:
        self._length, self._vocab_size = manifest["length"], manifest["tokenizer"]["vocab_size"]
        self._entries, self._folder, self._cache = entries, folder, cache
        self._locks = [threading.Lock() for _ in entries]  # so that a shard is hashed once
        self._mapped = lru_cache(maxsize=limit)(self._map)

    def columns(self, number: int) -> dict[str, NDArray[Any]]:
        """Return the columns of a shard as read-only views of its file.

        Raises: DataError if rows, types, ids or bytes differ from the manifest; as `table`.
        """
        with self._locks[number]:
            return self._mapped(number)

    def _map(self, number: int) -> dict[str, NDArray[Any]]:
        """Map a shard and check it, each time it is mapped: the file may have changed."""
        entry = self._entries[number]
        table = self.table(entry["file"], entry["sha256"], entry["rows"])
        path = self._folder / entry["file"]
        lists = {
            "input_ids": pa.list_(pa.from_numpy_dtype(id_type(self._vocab_size)), self._length),
            "word_starts": pa.list_(pa.uint8(), math.ceil(self._length / 8)),
        }
        for name, expected in lists.items():
            found = table.schema.field(name).type if name in table.column_names else "missing"
            if found != expected:
                raise DataError(f"{path}: column {name} is {found}, expected {expected}; {REMEDY}")
        columns = {name: _view(table.column(name)) for name in table.column_names}
        largest = int(columns["input_ids"].max())
        if largest >= self._vocab_size:
            raise DataError(
                f"{path} holds the id {largest}, expected ids below the tokenizer's"
                f" {self._vocab_size}; {REMEDY}"
            )
        return columns

    def table(self, name: str, sha256: str, num_rows: int) -> pa.Table:
        """Fetch a file of the set if it is remote, and map it as `map_table`.

        Raises: as `map_table` for a local set; for a remote one SystemFault if the cached file has
            changed since it was fetched, and as ShardCache.fetch.
        """
        if self._cache is None:
            return map_table(self._folder / name, sha256, num_rows)
        with self._cache.pinned(name) as path:
            try:
                return map_table(path, sha256, num_rows)
            except DataError as error:
                raise SystemFault(
                    f"{path} has changed since it was fetched ({error}); start again, which fetches"
                    " it again"
                ) from error


def map_table(path: Path, sha256: str, num_rows: int) -> pa.Table:
    """Map an Arrow stream of one record batch; the pages that are mapped are the pages hashed.

    Raises: DataError if the file is missing or its content is not as expected.
    """
    try:
        pages = pa.memory_map(str(path)).read_buffer()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {REMEDY}") from error
    found = hashlib.sha256(pages).hexdigest()
    if found != sha256:
        raise DataError(f"{path} is damaged: expected sha256 {sha256}, found {found}; {REMEDY}")
    try:
        table = pa.ipc.open_stream(pages).read_all()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not an Arrow stream: {error}; {REMEDY}") from error
    batches = [len(batch) for batch in table.to_batches()]
    if sum(batches) != num_rows or len(batches) > 1:
        raise DataError(
            f"{path} has rows {batches} in its record batches, expected one of {num_rows} rows, as"
            f" in the manifest; {REMEDY}"
        )
    return table


def _view(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.chunk(0)
    if isinstance(array, pa.FixedSizeListArray):
        flat: NDArray[Any] = array.flatten().to_numpy(zero_copy_only=True)
        return flat.reshape(-1, array.type.list_size)
    values: NDArray[Any] = array.to_numpy(zero_copy_only=True)
    return values


def check_size(path: Path, expected: int) -> None:
    """Raise DataError if a file is missing or does not have the expected number of bytes."""
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {REMEDY}") from error
    if found != expected:
        raise DataError(f"{path} has {found} bytes, expected {expected}; {REMEDY}")
