"""Shards: Arrow files of fixed-length rows, read by memory mapping without copies.

A shard is an Arrow IPC stream of one uncompressed record batch, which `datasets.Dataset.from_file`
opens too. `ShardSet.open` checks the manifest against its fingerprint, the tokenizer against the
manifest, and the size of every file; a shard is hashed whenever it is mapped. Files of a remote set
are fetched into a cache on this node.

Dimensions: n rows asked for, L length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fitb.base.errors import DataError, nearest
from fitb.shards.cache import TOKENIZER, CacheSettings, ShardCache, open_cache
from fitb.shards.documents import MOST_DOCUMENTS
from fitb.shards.manifest import DOCUMENTS, read_manifest, remote_manifest
from fitb.shards.mmap import REMEDY, MappedShards, check_size
from fitb.shards.remote import Remote, is_remote, local_folder
from fitb.shards.tokenizer import tokenizer_fingerprint


@dataclass(frozen=True)
class Rows:
    """Rows for training.

    Args:
        input_ids: (n, L) int64, token ids.
        word_starts: (n, L) bool, true on the first subword of each word.
    """

    input_ids: NDArray[np.int64]
    word_starts: NDArray[np.bool_]


@dataclass(frozen=True)
class Offsets:
    """Character offsets of the tokens of validation rows in their documents' normalised text.

    Args:
        offset_begin: (n, L) int32, first character; 0 for special tokens.
        offset_end: (n, L) int32, one past the last character; 0 for special tokens.
    """

    offset_begin: NDArray[np.int32]
    offset_end: NDArray[np.int32]


def length_of(where: Path | str, deadline_s: float) -> int:
    """Return the tokens per row of a shard set, a remote one within `fetch_deadline_s`.

    Raises: what `ShardSet.open` raises.
    """
    if is_remote(where):
        manifest = remote_manifest(Remote(str(where), deadline_s))
    else:
        manifest = read_manifest(local_folder(where))
    return int(manifest["length"])


@dataclass(frozen=True)
class ShardSet:
    """The rows of one split of a shard set.

    Rows are numbered consecutively over the shards, in the order of the manifest. Reading is
    thread-safe; unpickling opens the set again.

    Args:
        name: name of the set in messages, without passwords.
        split: train or validation.
        length: L, tokens in a row.
        fingerprint: fingerprint of the set with all its splits.
        shard_rows: number of rows of each shard.
        manifest: content of the manifest.
        tokenizer_folder: path of the tokenizer on this machine.
        cache: cache of a remote set; None for a local one.
    """

    name: str
    split: str
    length: int
    fingerprint: str
    shard_rows: tuple[int, ...]
    manifest: dict[str, Any] = field(repr=False)
    tokenizer_folder: Path = field(repr=False)
    cache: ShardCache | None = field(repr=False, compare=False)
    _entries: tuple[dict[str, Any], ...] = field(repr=False, compare=False)
    _mapped: MappedShards = field(repr=False, compare=False)
    _ends: NDArray[np.int64] = field(repr=False, compare=False)  # first row after each shard
    _again: tuple[Any, ...] = field(repr=False, compare=False)  # arguments of `open`

    @classmethod
    def open(
        cls,
        where: Path | str,
        split: str,
        settings: CacheSettings | None = None,
        max_mapped: int = 64,
    ) -> ShardSet:
        """Open a split; check manifest, tokenizer and sizes now, and shards when they are mapped.

        Args:
            where: folder, or URL of an fsspec protocol.
            split: train or validation.
            settings: settings of the cache of a remote set.
            max_mapped: largest number of shards mapped at a time; at least those of one read.
        Raises: DataError that names the wrong folder, split or file; for a remote set ConfigError
            and SystemFault too, as Remote.
        """
        cache = None
        if is_remote(where):
            settings = settings or CacheSettings()
            remote = Remote(str(where), settings.deadline_s)
            manifest = remote_manifest(remote)
            cache = open_cache(remote, manifest, settings)
        else:
            manifest = read_manifest(local_folder(where))
        folder = cache.folder if cache else local_folder(where)
        name = cache.remote.name if cache else str(folder)
        entries = tuple(entry for entry in manifest["shards"] if entry["split"] == split)
        if not entries:
            known = list(manifest["splits"])
            raise DataError(
                f"{name} has no split {split!r}{nearest(split, known)}; it has {', '.join(known)}"
            )
        if cache is None:
            expected = manifest["tokenizer"]["fingerprint"]
            found = tokenizer_fingerprint(folder / TOKENIZER)
            if found != expected:
                raise DataError(
                    f"{folder / TOKENIZER} is not the tokenizer of these shards: expected"
                    f" fingerprint {expected}, found {found}; {REMEDY}"
                )
            for entry in entries:
                check_size(folder / entry["file"], entry["bytes"])
        shard_rows = tuple(entry["rows"] for entry in entries)
        return cls(
            name=name,
            split=split,
            length=manifest["length"],
            fingerprint=manifest["fingerprint"],
            shard_rows=shard_rows,
            manifest=manifest,
            tokenizer_folder=folder / TOKENIZER,
            cache=cache,
            _entries=entries,
            _mapped=MappedShards(manifest, entries, folder, cache, max_mapped),
            _ends=np.cumsum(shard_rows),
            _again=(where, split, settings, max_mapped),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet.open, self._again

    @property
    def num_rows(self) -> int:
        return int(self._ends[-1])

    @property
    def shard_bytes(self) -> tuple[int, ...]:
        return tuple(entry["bytes"] for entry in self._entries)

    def fetch(self, numbers: Iterable[int]) -> None:
        """Fetch shards of a remote set to this node, those that another process fetches last.

        Args:
            numbers: numbers of shards.
        Raises: as ShardCache.fetch.
        """
        if self.cache is not None:
            files = [self._entries[number]["file"] for number in numbers]
            for file in [file for file in files if not self.cache.fetch(file, wait=False)]:
                self.cache.fetch(file)

    def documents(self, number: int) -> pa.Table:
        """Return the table of source documents of a shard, as written by `write_documents`.

        Raises: DataError if the set has none, or the file is missing or damaged.
        """
        entry = self._entries[number]
        if DOCUMENTS not in entry:
            raise DataError(
                f"{self.name} has no table of the documents of {entry['file']}; run `fitb prepare`"
                " again"
            )
        return self._mapped.table(entry[DOCUMENTS], entry["documents_sha256"], entry["documents"])

    def read(self, rows: NDArray[np.int64]) -> Rows:
        """Return rows in the given order.

        Args:
            rows: (n,) int64, row numbers in [0, num_rows); repeats are allowed.
        Raises: DataError if a shard is damaged; IndexError if a row does not exist; as
            ShardCache.fetch.
        """
        ids = np.empty((len(rows), self.length), dtype=np.int64)
        starts = np.empty((len(rows), self.length), dtype=bool)
        for asked, columns, local in self._by_shard(rows):
            ids[asked] = columns["input_ids"][local]
            packed = columns["word_starts"][local]
            bits = np.unpackbits(packed, axis=1, count=self.length, bitorder="little")
            starts[asked] = bits.view(bool)
        return Rows(ids, starts)

    def read_offsets(self, rows: NDArray[np.int64]) -> Offsets:
        """Return the character offsets of the tokens of rows.

        Args:
            rows: (n,) int64, row numbers in [0, num_rows).
        Raises: DataError if the split has no offsets; as `read`.
        """
        begin = np.empty((len(rows), self.length), dtype=np.int32)
        end = np.empty((len(rows), self.length), dtype=np.int32)
        for asked, columns, local in self._by_shard(rows):
            if "offset_begin" not in columns:
                raise DataError(
                    f"split {self.split!r} of {self.name} has no offsets; only validation has"
                )
            begin[asked] = columns["offset_begin"][local]
            end[asked] = columns["offset_end"][local]
        return Offsets(begin, end)

    def document_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of each row's first document, for `documents_at`: (n,) int64.

        The number is unique in the split: number of the shard x MOST_DOCUMENTS + ordinal of the
        document in the shard.

        Args:
            rows: (n,) int64, row numbers in [0, num_rows).
        Raises: as `read`.
        """
        numbers = np.empty(len(rows), dtype=np.int64)
        for asked, columns, local in self._by_shard(rows):
            numbers[asked] = columns["doc_begin"][local]
        return np.searchsorted(self._ends, rows, side="right") * MOST_DOCUMENTS + numbers

    def _by_shard(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]], NDArray[np.int64]]]:
        """Yield (indices into `rows`, columns, rows inside the shard) for each shard."""
        rows = np.asarray(rows, dtype=np.int64)
        if not len(rows):
            return
        if rows.min() < 0 or rows.max() >= self.num_rows:
            raise IndexError(
                f"rows {rows.min()} .. {rows.max()} asked of {self.split!r}, which has"
                f" {self.num_rows}"
            )
        shard = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(shard, kind="stable")
        numbers, begins = np.unique(shard[order], return_index=True)
        for number, asked in zip(numbers.tolist(), np.split(order, begins[1:]), strict=True):
            first = self._ends[number] - self.shard_rows[number]
            yield asked, self._mapped.columns(number), rows[asked] - first
