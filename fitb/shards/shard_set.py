"""Shards: Arrow files of fixed-length rows, read through memory maps as views without copies.

A file is an Arrow IPC stream of one uncompressed record batch, which `datasets.Dataset.from_file`
opens as well. The manifest beside the files says what they are: `ShardSet.open` checks it against
its fingerprint, the tokenizer against the manifest, and the size of every file; a shard is checked
against its entry whenever it is mapped. Files of a remote set pass through the cache of this node.

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
    """What training reads.

    Args:
        input_ids: (n, L) int64.
        word_starts: (n, L) bool, true on the first piece of each word.
    """

    input_ids: NDArray[np.int64]
    word_starts: NDArray[np.bool_]


@dataclass(frozen=True)
class Offsets:
    """Where the tokens of validation rows lie in their documents' normalised text.

    Args:
        offset_begin: (n, L) int32, first character; 0 for special tokens.
        offset_end: (n, L) int32, one past the last character; 0 for special tokens.
    """

    offset_begin: NDArray[np.int32]
    offset_end: NDArray[np.int32]


@dataclass(frozen=True)
class ShardSet:
    """The rows of one split, by number.

    Rows are numbered through the shards in the manifest's order. Reading is thread-safe; a copy
    sent to another process opens the set again.

    Args:
        name: of the set in messages, without passwords.
        split: train or validation.
        length: L, tokens in a row.
        fingerprint: of the whole set, both splits.
        shard_rows: rows of each shard.
        manifest: all of it.
        tokenizer_folder: on this machine.
        cache: of a remote set; None for a local one.
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
    _ends: NDArray[np.int64] = field(repr=False, compare=False)  # of each shard, in rows
    _again: tuple[Any, ...] = field(repr=False, compare=False)  # arguments of open

    @classmethod
    def open(
        cls,
        where: Path | str,
        split: str,
        settings: CacheSettings | None = None,
        max_mapped: int = 64,
    ) -> ShardSet:
        """Open a split; manifest, tokenizer and sizes are checked now, shards when they are mapped.

        Args:
            where: folder, or a URL that fsspec knows.
            settings: of the cache of a remote set.
            max_mapped: shards mapped at a time; the shards of one read should be no more.
        Raises: DataError that names the folder, split or file that is not as it should be; for a
            remote set ConfigError and SystemFault too, as Remote does.
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
            found, expected = (
                tokenizer_fingerprint(folder / TOKENIZER),
                manifest["tokenizer"]["fingerprint"],
            )
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
        """Bring shards of a remote set to this node, those that no other process fetches first.

        Raises: as ShardCache.fetch does.
        """
        if self.cache is not None:
            files = [self._entries[number]["file"] for number in numbers]
            for file in [file for file in files if not self.cache.fetch(file, wait=False)]:
                self.cache.fetch(file)

    def documents(self, number: int) -> pa.Table:
        """Return where the documents of a shard come from: what `write_documents` wrote.

        Raises: DataError where the set does not say, or the file is missing or damaged.
        """
        entry = self._entries[number]
        if DOCUMENTS not in entry:
            raise DataError(
                f"{self.name} does not say where the documents of {entry['file']} come from; run"
                " `fitb prepare` again"
            )
        return self._mapped.table(entry[DOCUMENTS], entry["documents_sha256"], entry["documents"])

    def read(self, rows: NDArray[np.int64]) -> Rows:
        """Return rows in the order asked for.

        Args:
            rows: (n,) int64, each in [0, num_rows); repeats are allowed.
        Raises: DataError where a touched shard is damaged; IndexError where a row does not exist;
            what ShardCache.fetch raises.
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
        """Return where the tokens of rows lie in their documents.

        Args:
            rows: (n,) int64, each in [0, num_rows).
        Raises: DataError where the split has no offsets; as `read` does.
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
        """Return the number of each row's first document, for `documents.documents_at`: (n,) int64.

        No two documents of the split have one number: it is the shard's times MOST_DOCUMENTS, and
        the document's ordinal in the shard.

        Args:
            rows: (n,) int64, each in [0, num_rows).
        Raises: as `read` does.
        """
        numbers = np.empty(len(rows), dtype=np.int64)
        for asked, columns, local in self._by_shard(rows):
            numbers[asked] = columns["doc_begin"][local]
        return np.searchsorted(self._ends, rows, side="right") * MOST_DOCUMENTS + numbers

    def _by_shard(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]], NDArray[np.int64]]]:
        """Yield (places in `rows`, columns, rows inside the shard) for every shard concerned."""
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
