"""Source text of documents with its capitals, read again from the input files.

Shards hold token ids, and a lowercasing tokenizer loses capitals. The table of documents of a shard
says where each came from: it is read and cleaned again, and used only if its digest is the same.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fitb.base.errors import ConfigError, DataError
from fitb.base.fsio import read_json
from fitb.corpus import docstrings, lines, tables
from fitb.corpus.clean import CleanConfig, Cleaner
from fitb.corpus.files import compression_of
from fitb.corpus.input_splits import TO_THE_END, Document, Dropped, InputSplit, ReadPlan, TextSource
from fitb.corpus.sorted_runs import text_digest
from fitb.shards.documents import MOST_DOCUMENTS, documents_at
from fitb.shards.manifest import INPUTS
from fitb.shards.shard_set import ShardSet
from fitb.shards.write import DIGEST_BYTES

_MOST_BYTES = 4e9  # of input files to read: some minutes
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class SourceTexts:
    """Normalised texts of documents, with capitals.

    Args:
        texts: text by document number, as from `documents_at`.
        wanted: number of documents asked for.
        reason: why some or all texts are missing; empty if none is.
    """

    texts: Mapping[int, str]
    wanted: int
    reason: str = ""


_Places = Mapping[int, Mapping[int, tuple[int, bytes]]]  # file, place: document number, digest


def read_source_texts(
    shards: ShardSet, rows: NDArray[np.int64], *, sep_id: int, pad_id: int
) -> SourceTexts:
    """Read the documents of some rows again from the input files of the shards.

    Args:
        shards: one split of a shard set.
        rows: (n,) int64, row numbers.
        sep_id: id of [SEP].
        pad_id: id of [PAD].
    Returns: the texts found; an input that is missing, changed or remote is no error.
    Raises: as ShardSet.read.
    """
    numbers = _documents_of(shards, rows, sep_id, pad_id)
    places: dict[int, dict[int, tuple[int, bytes]]] = defaultdict(dict)
    try:
        for shard in np.unique(numbers // MOST_DOCUMENTS):
            mine = numbers[numbers // MOST_DOCUMENTS == shard]
            table = shards.documents(int(shard)).take(mine % MOST_DOCUMENTS).to_pylist()
            for number, entry in zip(mine.tolist(), table, strict=True):
                places[entry["file"]][entry["place"]] = number, entry["digest"]
        texts = _read(shards, places)
    except (DataError, ConfigError, OSError) as error:
        return SourceTexts({}, len(numbers), str(error))
    changed = "the input has changed since the shards were made"
    return SourceTexts(texts, len(numbers), changed if len(texts) < len(numbers) else "")


def _documents_of(
    shards: ShardSet, rows: NDArray[np.int64], sep_id: int, pad_id: int
) -> NDArray[np.int64]:
    """Return the numbers of all documents that have tokens in the rows, ascending."""
    found = [np.empty(0, dtype=np.int64)]
    for begin in range(0, len(rows), _BLOCK_ROWS):
        block = rows[begin : begin + _BLOCK_ROWS]
        ids, first = shards.read(block).input_ids, shards.document_numbers(block)
        found.append(np.unique(documents_at(ids, first, sep_id=sep_id, pad_id=pad_id)))
    numbers = np.unique(np.concatenate(found))
    return numbers[numbers >= 0]


def _read(shards: ShardSet, places: _Places) -> dict[int, str]:
    settings = shards.manifest["settings"]
    source = TextSource.of(settings)
    if source.kind == "hf":
        raise DataError("the text of a Hugging Face dataset is not read again")
    plan = ReadPlan(tuple(_inputs(shards)), (), ())
    if source.kind != "docstrings":
        size = sum(os.path.getsize(plan.files[file]) for file in places)
        if size > _MOST_BYTES:
            raise DataError(f"reading the input again would take {size / 1e9:.1f} GB")
    cleaner = Cleaner(CleanConfig(**settings["clean"]))
    texts = {}
    for file, in_file in places.items():
        last = max(in_file)
        for document in _documents(source, plan, file, min(in_file)):
            if document.place in in_file and isinstance(document, Document):
                number, digest = in_file[document.place]
                text = cleaner.clean(document.text).text
                if text_digest(text)[:DIGEST_BYTES] == digest:
                    texts[number] = text
            if document.place >= last:
                break
    return texts


def _inputs(shards: ShardSet) -> list[str]:
    if shards.cache is not None:
        raise DataError("the shards are remote, so their input files are not on this machine")
    path = shards.tokenizer_folder.parent / INPUTS
    if not path.is_file():
        raise DataError(f"{path}, which lists the input files, is missing")
    return list(read_json(path))


def _documents(
    source: TextSource, plan: ReadPlan, file: int, first: int
) -> Iterator[Document | Dropped]:
    """Yield the documents of a file in order, from place `first` on if the file can be seeked."""
    name = plan.files[file]
    if source.kind == "docstrings":
        return docstrings.read(source.files, plan, InputSplit(0, file, file, file + 1))
    if source.kind == "parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(name) as found:
            groups = found.metadata.num_row_groups
        return tables.read_parquet(source, name, InputSplit(0, file, 0, groups))
    begin = 0 if compression_of(name) else first
    return lines.read(source, name, InputSplit(0, file, begin, TO_THE_END))
