"""The text of documents as it was before the tokenizer, read again from where it lies.

Shards hold ids, and a lowercase tokenizer forgets capitals. The table of documents says where each
one came from: there it is read and cleaned again, and taken only if its digest is the same.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitb.base.errors import ConfigError, DataError
from fitb.base.fsio import read_json
from fitb.corpus import docstrings, lines, tables
from fitb.corpus.clean import CleanConfig, Cleaner
from fitb.corpus.files import compression_of
from fitb.corpus.input_splits import TO_THE_END, Document, Dropped, InputSplit, ReadPlan, TextSource
from fitb.shards.documents import MOST_DOCUMENTS, documents_at
from fitb.shards.shard_set import ShardSet
from fitb.shards.write import DIGEST_BYTES

_INPUTS = "inputs.json"
_MOST_BYTES = 4e9  # of files to read through: some minutes
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class SourceTexts:
    """Normalised texts of documents, capitals and all.

    Args:
        texts: by the document's number in its split, as `documents_at` gives it.
        wanted: how many were asked for.
        reason: why some, or all, are not there; empty where none is missing.
    """

    texts: Mapping[int, str]
    wanted: int
    reason: str = ""


@dataclass(frozen=True)
class _Wanted:
    """A document to read again, and the digest that its text must have."""

    number: int
    digest: bytes


def read_source_texts(
    shards: ShardSet, rows: NDArray[np.int64], *, sep_id: int, pad_id: int
) -> SourceTexts:
    """Read the documents of some rows again from the input that the shards were made of.

    Returns: what was found; never raises for an input that is gone, changed or far.
    Raises: as ShardSet.read does.
    """
    numbers = _documents_of(shards, rows, sep_id, pad_id)
    places: dict[int, dict[int, _Wanted]] = defaultdict(dict)  # by file and place in it
    try:
        for shard in np.unique(numbers // MOST_DOCUMENTS):
            mine = numbers[numbers // MOST_DOCUMENTS == shard]
            table = shards.documents(int(shard)).take(mine % MOST_DOCUMENTS).to_pylist()
            for number, entry in zip(mine.tolist(), table, strict=True):
                places[entry["file"]][entry["place"]] = _Wanted(number, entry["digest"])
        texts = _read(shards, places)
    except (DataError, ConfigError, OSError) as error:
        return SourceTexts({}, len(numbers), str(error))
    reason = (
        "" if len(texts) == len(numbers) else "the input has changed since the shards were made"
    )
    return SourceTexts(texts, len(numbers), reason)


def _documents_of(
    shards: ShardSet, rows: NDArray[np.int64], sep_id: int, pad_id: int
) -> NDArray[np.int64]:
    """Return the numbers of all documents with tokens in some rows, ascending."""
    found = [np.empty(0, dtype=np.int64)]
    for begin in range(0, len(rows), _BLOCK_ROWS):
        block = rows[begin : begin + _BLOCK_ROWS]
        ids, first = shards.read(block).input_ids, shards.document_numbers(block)
        found.append(np.unique(documents_at(ids, first, sep_id=sep_id, pad_id=pad_id)))
    numbers = np.unique(np.concatenate(found))
    return numbers[numbers >= 0]


def _read(shards: ShardSet, places: Mapping[int, Mapping[int, _Wanted]]) -> dict[int, str]:
    settings = shards.manifest["settings"]
    source = _source(settings)
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
            wanted = in_file.get(document.place)
            if wanted and isinstance(document, Document):
                text = cleaner.clean(document.text).text
                if hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES] == wanted.digest:
                    texts[wanted.number] = text
            if document.place >= last:
                break
    return texts


def _source(settings: Mapping[str, Any]) -> TextSource:
    names = ("document", "column", "subset", "split", "max_document_mb")
    source = TextSource(
        settings["source"], tuple(settings["files"]), **{name: settings[name] for name in names}
    )
    if source.kind == "hf":
        raise DataError("a Hugging Face dataset is not read through again for its capitals")
    return source


def _inputs(shards: ShardSet) -> list[str]:
    if shards.cache is not None:
        raise DataError("the shards are remote, and the input that they were made of is elsewhere")
    path = shards.tokenizer_folder.parent / _INPUTS
    if not path.is_file():
        raise DataError(f"{path} is missing, which names the input")
    return list(read_json(path))


def _documents(
    source: TextSource, plan: ReadPlan, file: int, first: int
) -> Iterator[Document | Dropped]:
    """Yield the documents of a file in order, from some place on where that can be reached."""
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
