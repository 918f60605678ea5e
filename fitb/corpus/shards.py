"""Shards: Arrow files of fixed-length rows, read through memory maps as views without copies.

A file is an Arrow IPC stream of one uncompressed record batch, which `datasets.Dataset.from_file`
opens as well. The manifest beside the files says what they are: `ShardSet.open` checks it against
its fingerprint, the tokenizer against the manifest, and the size of every file; a shard is checked
against its entry whenever it is mapped. Files of a remote set pass through the cache of this node.

Dimensions: n rows asked for, L length.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fitb.corpus.cache import TOKENIZER, Cache, CacheSettings, open_cache
from fitb.corpus.chunk import Columns
from fitb.corpus.manifest import DOCUMENTS, read_manifest, remote_manifest
from fitb.corpus.mapped import REMEDY, MappedShards, check_size, id_type
from fitb.corpus.remote import Remote, is_remote, local_folder
from fitb.corpus.tokenizer import tokenizer_fingerprint
from fitb.errors import DataError, nearest
from fitb.fsio import naming_full_disk

DIGEST_BYTES = 16  # of a document
_ORDINAL_BITS = 40  # of a document in its shard


def write_shard(path: Path, rows: Columns, *, vocab_size: int, with_offsets: bool) -> int:
    """Write rows as one Arrow file; equal rows give equal bytes.

    Args:
        path: written anew; on disk when the function returns.
        rows: at least one.
        vocab_size: decides the type of input_ids.
        with_offsets: add the characters of every token, for validation.
    Returns: size in bytes.
    Raises: SystemFault where the disk is full.
    """
    columns: dict[str, pa.Array] = {
        "input_ids": _lists(rows.input_ids.astype(id_type(vocab_size))),
        "word_starts": _lists(np.packbits(rows.word_starts, axis=1, bitorder="little")),
        "doc_begin": pa.array(rows.doc_begin),
        "doc_end": pa.array(rows.doc_end),
        "char_begin": pa.array(rows.char_begin),
        "char_end": pa.array(rows.char_end),
    }
    if with_offsets:
        columns["offset_begin"] = _lists(rows.offset_begin)
        columns["offset_end"] = _lists(rows.offset_end)
    return _write_stream(path, columns)


def write_documents(
    path: Path,
    file: NDArray[np.int32],
    place: NDArray[np.int64],
    chars: NDArray[np.int32],
    digest: NDArray[np.uint8],
) -> int:
    """Write where the documents of a shard come from, one row each, in the shard's order.

    Args:
        path: written anew; on disk when the function returns.
        file: (n,) int32, which of the set's input files.
        place: (n,) int64, where in that file.
        chars: (n,) int32, characters of the normalised text.
        digest: (n, 16) uint8, first half of the sha256 of the normalised text in UTF-8.
    Returns: size in bytes.
    Raises: SystemFault where the disk is full.
    """
    digests = pa.py_buffer(np.ascontiguousarray(digest, dtype=np.uint8))
    columns = {
        "file": pa.array(file, pa.int32()),
        "place": pa.array(place, pa.int64()),
        "chars": pa.array(chars, pa.int32()),
        "digest": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(DIGEST_BYTES), len(digest), [None, digests]
        ),
    }
    return _write_stream(path, columns)


def _write_stream(path: Path, columns: dict[str, pa.Array]) -> int:
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    with naming_full_disk(path), open(path, "wb") as file:
        with pa.ipc.new_stream(file, batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size


def _lists(values: NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.arrow"


def _check_tokenizer(folder: Path, expected: str) -> None:
    found = tokenizer_fingerprint(folder)
    if found != expected:
        raise DataError(
            f"{folder} is not the tokenizer of these shards: expected fingerprint {expected}, found"
            f" {found}; {REMEDY}"
        )


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
        doc_begin: (n,) int64, first document of the row, counted from 0 in its shard file; the
            next follows [SEP].
    """

    offset_begin: NDArray[np.int32]
    offset_end: NDArray[np.int32]
    doc_begin: NDArray[np.int64]


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
    cache: Cache | None = field(repr=False, compare=False)
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
            _check_tokenizer(folder / TOKENIZER, manifest["tokenizer"]["fingerprint"])
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

        Raises: as Cache.fetch does.
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
            what Cache.fetch raises.
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
        document = np.empty(len(rows), dtype=np.int64)
        for asked, columns, local in self._by_shard(rows):
            if "offset_begin" not in columns:
                raise DataError(
                    f"split {self.split!r} of {self.name} has no offsets; only validation has"
                )
            begin[asked] = columns["offset_begin"][local]
            end[asked] = columns["offset_end"][local]
            document[asked] = columns["doc_begin"][local]
        return Offsets(begin, end, document)

    def document_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of each row's first document: (n,) int64, no two alike in the split.

        The next document of a row has the next number.

        Args:
            rows: (n,) int64, each in [0, num_rows).
        Raises: as `read` does.
        """
        shard = np.searchsorted(self._ends, rows, side="right")
        return (shard << _ORDINAL_BITS) + self.first_documents(rows)

    def first_documents(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ordinal of each row's first document in its shard: (n,) int64.

        Args:
            rows: (n,) int64, each in [0, num_rows).
        Raises: as `read` does.
        """
        document = np.empty(len(rows), dtype=np.int64)
        for asked, columns, local in self._by_shard(rows):
            document[asked] = columns["doc_begin"][local]
        return document

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
