"""Documents from where text lies, in input splits that any number of tasks can share.

A plan cuts the input into splits; each document of the input is in exactly one of them, whatever
their size. Reading is lazy and in bounded memory, and the only order is that of the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from fitb.base.errors import ConfigError, DataError
from fitb.corpus import docstrings, lines, tables
from fitb.corpus.files import InputFile, expand
from fitb.corpus.input_splits import Cut, Document, Dropped, InputSplit, ReadPlan, TextSource

__all__ = ["Document", "Dropped", "ReadPlan", "TextSource", "InputSplit", "plan", "read_split"]

_TRIED = 100


def plan(source: TextSource, *, split_mb: float = 64, max_mb: float | None = None) -> ReadPlan:
    """Cut a source into input splits and try to read a document.

    Args:
        split_mb: nominal size of a split, in 10**6 bytes of the file; a boundary moves on to the
            next safe place. A compressed file and a shard of a dataset are one split whole.
        max_mb: take this much text (10**6 bytes of UTF-8) from the front of the input, and what
            it takes to end a document, row group or Python file. A compressed file counts four
            times its size, Parquet what its text column takes uncompressed, a Python file 0.15
            of its own, a shard of a dataset what the dataset tells.
    Raises: DataError where a file is missing or foreign, or there is nothing to read.
    """
    for name, value in (("split_mb", split_mb), ("max_mb", max_mb)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value}, expected more than 0 megabytes")
    split_bytes = max(1, round(split_mb * 1e6))
    found = _found(source, split_bytes)
    splits: list[InputSplit] = []
    room = float("inf") if max_mb is None else max_mb * 1e6
    for number, piece in _cut(source, found, split_bytes, room):
        splits.append(InputSplit(len(splits), number, piece.begin, piece.end))
    result = ReadPlan(
        tuple(file.name for file in found),
        tuple(file.num_bytes for file in found),
        tuple(splits),
        tuple(file.stamp for file in found),
    )
    if not splits:
        where = ", ".join(source.files) or "the running interpreter's packages"
        raise DataError(
            f"source {source.kind!r} found nothing to read in {where}; name other files"
        )
    # A wrong column is told now, not by a task.
    for item in islice(read_split(source, result, splits[0]), _TRIED):
        if isinstance(item, Document):
            break
    return result


def read_split(
    source: TextSource, plan: ReadPlan, split: InputSplit
) -> Iterator[Document | Dropped]:
    """Yield what a split holds, in order: documents, and places where one could not be read.

    Raises: DataError where a file is torn, foreign, changed, or has no such column.
    """
    if source.kind == "docstrings":
        return docstrings.read(source.files, plan, split)
    if source.kind == "hf":
        return tables.read_shard(source, plan, split)
    name = plan.files[split.file]
    return (tables.read_parquet if source.kind == "parquet" else lines.read)(source, name, split)


def _found(source: TextSource, split_bytes: int) -> list[InputFile]:
    if source.kind == "docstrings":
        return docstrings.python_files(source.files)
    if source.kind == "hf":
        return tables.shards_of(source, split_bytes)
    return expand(source.files)


def _cut(
    source: TextSource, found: list[InputFile], split_bytes: int, room: float
) -> Iterator[tuple[int, Cut]]:
    """Yield (number of the file, piece) until `room` bytes of text are reached."""
    if source.kind == "docstrings":
        for piece in docstrings.cut(found, split_bytes, room):
            yield piece.begin, piece
        return
    for number, file in enumerate(found):
        if source.kind == "hf":
            pieces = tables.cut_shard(source, number, found, room)
        elif source.kind == "parquet":
            pieces = tables.cut_parquet(source, file, split_bytes, room)
        else:
            pieces = lines.cut(source, file, split_bytes, room)
        for piece in pieces:
            room -= piece.text_bytes
            yield number, piece
        if room <= 0:
            return
