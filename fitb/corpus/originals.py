"""The text of documents as it was before the tokenizer, read again from where it lies.

Shards hold ids, and a lowercase tokenizer forgets capitals. The table of documents says where each
one came from: there it is read and cleaned again, and taken only if its digest is the same.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitb.corpus import docstrings, lines, tables
from fitb.corpus.clean import CleanConfig, Cleaner
from fitb.corpus.files import compression_of
from fitb.corpus.shards import DIGEST_BYTES, ShardSet
from fitb.corpus.units import TO_THE_END, Document, Dropped, Plan, Source, Unit
from fitb.errors import ConfigError, DataError
from fitb.fsio import read_json

_INPUTS = "inputs.json"
_MOST_BYTES = 4e9  # of files to read through: some minutes


@dataclass(frozen=True)
class Originals:
    """Normalised texts of documents, capitals and all.

    Args:
        texts: by (shard, ordinal of the document in it).
        wanted: how many were asked for.
        reason: why some, or all, are not there; empty where none is missing.
    """

    texts: Mapping[tuple[int, int], str]
    wanted: int
    reason: str = ""


def documents_of(shards: ShardSet, rows: NDArray[np.int64], sep_id: int) -> set[tuple[int, int]]:
    """Return (shard, ordinal) of every document with tokens in some rows.

    Raises: as ShardSet.read does.
    """
    ends = np.cumsum(shards.shard_rows)
    found: set[tuple[int, int]] = set()
    for begin in range(0, len(rows), 1024):
        block = rows[begin : begin + 1024]
        firsts = shards.first_documents(block)
        numbers = np.searchsorted(ends, block, side="right")
        most = np.count_nonzero(shards.read(block).input_ids == sep_id, axis=1)
        for shard, first, number in zip(numbers, firsts, most, strict=True):
            found.update((int(shard), int(first) + i) for i in range(int(number) + 1))
    return found


def read_originals(shards: ShardSet, wanted: Iterable[tuple[int, int]]) -> Originals:
    """Read documents again from the input that the shards were made of.

    Args:
        wanted: (shard, ordinal); ordinals behind the last document are passed over.
    Returns: what was found; never raises for an input that is gone, changed or far.
    """
    by_shard: dict[int, list[int]] = defaultdict(list)
    for shard, ordinal in wanted:
        by_shard[shard].append(ordinal)
    places: dict[int, dict[int, tuple[tuple[int, int], bytes]]] = defaultdict(dict)
    try:
        for shard, ordinals in by_shard.items():
            table = shards.documents(shard).to_pydict()
            for ordinal in ordinals:
                if ordinal < len(table["file"]):
                    key = ((shard, ordinal), table["digest"][ordinal])
                    places[table["file"][ordinal]][table["place"][ordinal]] = key
    except DataError as error:
        return Originals({}, sum(map(len, by_shard.values())), str(error))
    number = sum(map(len, places.values()))
    try:
        texts = _read(shards, places)
    except (DataError, ConfigError, OSError) as error:
        return Originals({}, number, str(error))
    reason = "" if len(texts) == number else "the input has changed since the shards were made"
    return Originals(texts, number, reason)


def _read(
    shards: ShardSet, places: Mapping[int, Mapping[int, tuple[tuple[int, int], bytes]]]
) -> dict[tuple[int, int], str]:
    settings = shards.manifest["settings"]
    source = _source(settings)
    plan = Plan(tuple(_inputs(shards)), (), ())
    if source.kind != "docstrings":
        size = sum(os.path.getsize(plan.files[file]) for file in places)
        if size > _MOST_BYTES:
            raise DataError(f"reading the input again would take {size / 1e9:.1f} GB")
    cleaner = Cleaner(CleanConfig(**settings["clean"]))
    texts = {}
    for file, held in places.items():
        last = max(held)
        for document in _documents(source, plan, file, min(held)):
            if document.place in held and isinstance(document, Document):
                key, digest = held[document.place]
                text = cleaner.clean(document.text).text
                if hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES] == digest:
                    texts[key] = text
            if document.place >= last:
                break
    return texts


def _source(settings: Mapping[str, Any]) -> Source:
    names = ("document", "column", "subset", "split", "max_document_mb")
    source = Source(
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


def _documents(source: Source, plan: Plan, file: int, first: int) -> Iterator[Document | Dropped]:
    """Yield the documents of a file in order, from some place on where that can be reached."""
    name = plan.files[file]
    if source.kind == "docstrings":
        return docstrings.read(source.files, plan, Unit(0, file, file, file + 1))
    if source.kind == "parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(name) as found:
            groups = found.metadata.num_row_groups
        return tables.read_parquet(source, name, Unit(0, file, 0, groups))
    begin = 0 if compression_of(name) else first
    return lines.read(source, name, Unit(0, file, begin, TO_THE_END))
