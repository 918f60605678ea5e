"""Planning and reading of input splits of the source text, whatever its kind.

Each document is in exactly one input split, whatever the size of the splits. Reading is lazy, in
bounded memory, and in the order of the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from fitb.base.errors import DataError
from fitb.corpus import docstrings, lines, tables
from fitb.corpus.files import InputFile, expand
from fitb.corpus.input_splits import Cut, Document, Dropped, InputSplit, ReadPlan, TextSource

__all__ = ["Document", "Dropped", "ReadPlan", "TextSource", "InputSplit", "plan", "read_split"]

_TRIED = 100


def plan(source: TextSource, *, split_mb: float = 64, max_mb: float | None = None) -> ReadPlan:
    """Cut a source into input splits, and try to read a document of the first.

    Args:
        source: the source text.
        split_mb: nominal size of a split, in 10**6 bytes of the file; a boundary moves on to the
            next safe place. A compressed file and a shard of a dataset are always one split.
        max_mb: 10**6 bytes of UTF-8 text to take from the front of the input, rounded up to a whole
            document, row group or Python file. A compressed file counts as four times its size,
            Parquet as the uncompressed size of its text column, a Python file as 0.15 of its size,
            a shard of a dataset as the size that the dataset reports.
    Raises: DataError if a file is missing or of another format, or if there is nothing to read.
    """
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
    # Report a wrong column now rather than in a task.
    for item in islice(read_split(source, result, splits[0]), _TRIED):
        if isinstance(item, Document):
            break
    return result


def read_split(
    source: TextSource, plan: ReadPlan, split: InputSplit
) -> Iterator[Document | Dropped]:
    """Yield the documents of an input split in order, and records of unreadable ones.

    Raises: DataError if a file is truncated, has changed, is of another format or lacks the column.
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
    """Yield (file number, range) until `room` bytes of text are reached."""
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
