"""Shards: Arrow files of fixed-length rows, read through memory maps as views without copies.

A file is an Arrow IPC stream of one uncompressed record batch, which `datasets.Dataset.from_file`
opens as well. The manifest beside the files says what they are: `ShardSet.open` checks that every
file is there in its right size, and the first read of a shard checks its sha256.

Dimensions: n rows asked for, L length.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fitb.corpus.chunk import Columns, concatenate
from fitb.errors import DataError, nearest
from fitb.fsio import naming_full_disk, read_json, sha256_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_REMEDY = "copy the folder again, or remove it and run `fitb prepare` again"
_MANIFEST_KEYS = ("fingerprint", "length", "shards", "splits", "tokenizer", "settings")


def id_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest unsigned integer type that holds every id below vocab_size."""
    return np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32


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


def in_shards(batches: Iterable[Columns], shard_rows: int) -> Iterator[Columns]:
    """Regroup rows into shards of shard_rows; the last may be shorter."""
    waiting: list[Columns] = []
    num_waiting = 0
    for batch in batches:
        waiting.append(batch)
        num_waiting += len(batch)
        if num_waiting >= shard_rows:
            rows = concatenate(waiting)
            full = num_waiting - num_waiting % shard_rows
            for begin in range(0, full, shard_rows):
                yield rows.part(begin, begin + shard_rows)
            waiting, num_waiting = [rows.part(full, num_waiting)], num_waiting - full
    if num_waiting:
        yield concatenate(waiting)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a shard set.

    Raises: DataError where there is none, it is damaged, or another version wrote it.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is not a shard set: it has no {MANIFEST}; name a folder that"
            " `fitb prepare` wrote"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}; {_REMEDY}") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format_version {version}, this fitb reads {FORMAT_VERSION}; use the fitb"
            " that wrote it, or run `fitb prepare` again"
        )
    missing = [key for key in _MANIFEST_KEYS if key not in manifest]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; {_REMEDY}")
    return dict(manifest)


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
        doc_begin: (n,) int64, ordinal of the first document of the row; the next follows [SEP].
    """

    offset_begin: NDArray[np.int32]
    offset_end: NDArray[np.int32]
    doc_begin: NDArray[np.int64]


class _Shard:
    """One file: checked and mapped when it is first asked for."""

    def __init__(self, path: Path, sha256: str) -> None:
        self._path = path
        self._sha256 = sha256
        self._lock = threading.Lock()
        self._columns: dict[str, NDArray[Any]] | None = None

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns as read-only views of the file.

        Raises: DataError where the content is not what the manifest says.
        """
        with self._lock:
            if self._columns is None:
                found = sha256_file(self._path)
                if found != self._sha256:
                    raise DataError(
                        f"{self._path} is damaged: expected sha256 {self._sha256}, found {found};"
                        f" {_REMEDY}"
                    )
                self._columns = _map_columns(self._path)
            return self._columns


def _map_columns(path: Path) -> dict[str, NDArray[Any]]:
    table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        array = table.column(name).chunk(0)
        if isinstance(array, pa.FixedSizeListArray):
            flat = array.flatten().to_numpy(zero_copy_only=True)
            columns[name] = flat.reshape(-1, array.type.list_size)
        else:
            columns[name] = array.to_numpy(zero_copy_only=True)
    return columns


@dataclass(frozen=True)
class ShardSet:
    """The rows of one split, by number.

    Rows are numbered through the shards in the manifest's order. Reading is thread-safe; a copy
    sent to another process opens the folder again.

    Args:
        folder: of the manifest.
        split: train or validation.
        length: L, tokens in a row.
        fingerprint: of the whole set, both splits.
        shard_rows: rows of each shard.
        manifest: all of it.
    """

    folder: Path
    split: str
    length: int
    fingerprint: str
    shard_rows: tuple[int, ...]
    manifest: dict[str, Any] = field(repr=False)
    _shards: tuple[_Shard, ...] = field(repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path | str, split: str) -> ShardSet:
        """Open a split; sizes are checked now, contents when first read.

        Raises: DataError that names the folder, split or file that is not as it should be.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        entries = [entry for entry in manifest["shards"] if entry["split"] == split]
        if not entries:
            known = list(manifest["splits"])
            raise DataError(
                f"{folder} has no split {split!r}{nearest(split, known)}; it has {', '.join(known)}"
            )
        for entry in entries:
            _check_size(folder / entry["file"], entry["bytes"])
        return cls(
            folder=folder,
            split=split,
            length=manifest["length"],
            fingerprint=manifest["fingerprint"],
            shard_rows=tuple(entry["rows"] for entry in entries),
            manifest=manifest,
            _shards=tuple(_Shard(folder / entry["file"], entry["sha256"]) for entry in entries),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet.open, (self.folder, self.split)

    @property
    def num_rows(self) -> int:
        return sum(self.shard_rows)

    def read(self, rows: NDArray[np.int64]) -> Rows:
        """Return rows in the order asked for.

        Args:
            rows: (n,) int64, each in [0, num_rows); repeats are allowed.
        Raises: DataError where a touched shard is damaged; IndexError where a row does not exist.
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
        Raises: DataError where the split has no offsets, or a touched shard is damaged.
        """
        begin = np.empty((len(rows), self.length), dtype=np.int32)
        end = np.empty((len(rows), self.length), dtype=np.int32)
        document = np.empty(len(rows), dtype=np.int64)
        for asked, columns, local in self._by_shard(rows):
            if "offset_begin" not in columns:
                raise DataError(
                    f"split {self.split!r} of {self.folder} has no offsets; only validation has"
                )
            begin[asked] = columns["offset_begin"][local]
            end[asked] = columns["offset_end"][local]
            document[asked] = columns["doc_begin"][local]
        return Offsets(begin, end, document)

    def _by_shard(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]], NDArray[np.int64]]]:
        """Yield (places in `rows`, columns, rows inside the shard) for every shard concerned."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise IndexError(
                f"rows {rows.min()} .. {rows.max()} asked of {self.split!r}, which has"
                f" {self.num_rows}"
            )
        ends = np.cumsum(self.shard_rows)
        shard = np.searchsorted(ends, rows, side="right")
        for number in np.unique(shard):
            asked = np.flatnonzero(shard == number)
            first = ends[number] - self.shard_rows[number]
            yield asked, self._shards[number].columns(), rows[asked] - first


def _check_size(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {_REMEDY}") from error
    if found != expected:
        raise DataError(f"{path} has {found} bytes, expected {expected}; {_REMEDY}")
