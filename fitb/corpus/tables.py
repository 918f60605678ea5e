"""Text columns of Parquet files and Hugging Face datasets, streamed."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from fitb.base.errors import DataError, SystemFault
from fitb.corpus.files import InputFile, first_line, naming
from fitb.corpus.input_splits import (
    TO_THE_END,
    Cut,
    Document,
    Dropped,
    InputSplit,
    ReadPlan,
    TextSource,
    decoded,
)
from fitb.corpus.lines import no_column

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_ROWS = 256


def cut_parquet(
    source: TextSource, found: InputFile, split_bytes: int, room: float
) -> Iterator[Cut]:
    """Yield ranges of row groups of a Parquet file, one for each input split.

    Args:
        source: the source text.
        found: the file.
        split_bytes: uncompressed bytes of the text column; a range ends when it has as many.
        room: bytes of text to take; the row group that reaches it is the last.
    Raises: DataError if the file is not Parquet, or its column is missing or not text.
    """
    if not found.num_bytes:
        return
    with _parquet(found.name) as file:
        column = _text_column(file, found.name, source.column)
        begin, size = 0, 0
        for end in range(1, file.num_row_groups + 1):
            size += file.metadata.row_group(end - 1).column(column).total_uncompressed_size
            is_last = end == file.num_row_groups or size >= room
            if is_last or size >= split_bytes:
                yield Cut(begin, end, size)
                begin, size, room = end, 0, room - size
            if is_last:
                return


def read_parquet(source: TextSource, name: str, split: InputSplit) -> Iterator[Document | Dropped]:
    """Yield the documents of a range of row groups.

    Raises: DataError if the file is truncated, or its column is missing or not text.
    """
    import pyarrow as pa

    with _parquet(name) as file:
        _text_column(file, name, source.column)
        place = sum(file.metadata.row_group(number).num_rows for number in range(split.begin))
        groups = range(split.begin, split.end)
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=[source.column]):
            column = batch.column(0)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            # As bytes, so that a value that is not UTF-8 does not fail the whole batch.
            for raw in column.cast(pa.large_binary()).to_pylist():
                if raw is None:
                    yield Dropped(split.file, place, "no_text")
                else:
                    fits = len(raw) <= source.max_document_bytes
                    yield decoded(split.file, place, raw if fits else None)
                place += 1


@contextlib.contextmanager
def _parquet(name: str) -> Iterator[pq.ParquetFile]:
    import fsspec
    import pyarrow.parquet as pq

    remedy = "a Parquet file ends with PAR1: fetch it again, or take --source text or jsonl"
    with naming(name, remedy), contextlib.ExitStack() as stack:
        handle = name if os.path.exists(name) else stack.enter_context(fsspec.open(name, "rb"))
        yield stack.enter_context(pq.ParquetFile(handle))


def _text_column(file: pq.ParquetFile, name: str, column: str) -> int:
    """Return the index of the text column among the column chunks of a row group."""
    schema = file.schema_arrow
    if column not in schema.names:
        raise no_column(name, column, schema.names, "its schema")
    if (number := schema.names.count(column)) > 1:
        raise DataError(f"{name} has {number} columns {column!r}, expected one; rename the others")
    kind = schema.field(column).type
    if not _is_text(kind):
        texts = [field.name for field in schema if _is_text(field.type)]
        others = f"name one of {', '.join(texts)} with --column" if texts else "no other holds any"
        raise DataError(f"{name} holds {kind} in column {column!r}, expected strings; {others}")
    paths = [file.schema.column(number).path for number in range(len(file.schema))]
    return paths.index(column)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    strings = (pa.string(), pa.large_string(), pa.string_view())
    return kind in (*strings, pa.binary(), pa.large_binary(), pa.binary_view())  # Spark: binary


def shards_of(source: TextSource, split_bytes: int) -> list[InputFile]:
    """Return the shards of a Hugging Face dataset, with estimated bytes of text (0 if unknown).

    Args:
        source: the source text.
        split_bytes: size of the shards of a save_to_disk folder; other datasets have their own.
    Raises: DataError if the dataset or its column does not exist.
    """
    name = source.files[0]
    with _naming_dataset(name):
        if _is_saved(name):
            data = _saved(source).data
            size = data.column(data.column_names.index(source.column)).nbytes
            num_shards = min(max(1, -(-size // split_bytes)), data.num_rows)
        else:
            dataset = _streaming(source)
            split = (dataset.info.splits or {}).get(source.split)
            size = (split and split.num_bytes) or 0
            num_shards = dataset.num_shards
    label = f"{name} {source.subset} {source.split}" if source.subset else f"{name} {source.split}"
    return [
        InputFile(f"{label} shard {number} of {num_shards}", size // num_shards)
        for number in range(num_shards)
    ]


def cut_shard(
    source: TextSource, number: int, shards: list[InputFile], room: float
) -> Iterator[Cut]:
    """Yield a shard as one range that ends at the row that reaches `room` bytes of text.

    The rows are read to find it only if the shard may hold more than `room`.
    """
    estimate = shards[number].num_bytes
    if room == float("inf") or 0 < estimate <= room:
        yield Cut(0, TO_THE_END, estimate)
        return
    name, total = shards[number].name, 0
    with _naming_dataset(name):
        for row, record in enumerate(_rows(source, number, len(shards))):
            text = record.get(source.column)
            total += len(text.encode(errors="replace")) if isinstance(text, str) else 0
            if total >= room:
                yield Cut(0, row + 1, total)
                return
    yield Cut(0, TO_THE_END, total)


def read_shard(
    source: TextSource, plan: ReadPlan, split: InputSplit
) -> Iterator[Document | Dropped]:
    """Yield the documents of a shard of a Hugging Face dataset, streamed.

    Raises: DataError if the dataset cannot be read; SystemFault if the network fails.
    """
    name, limit = plan.files[split.file], source.max_document_bytes
    end = None if split.end == TO_THE_END else split.end
    with _naming_dataset(name), _naming_break(name):
        rows = _rows(source, split.file, len(plan.files))
        for place, record in enumerate(islice(rows, split.begin, end), split.begin):
            if place == 0 and source.column not in record:
                raise no_column(name, source.column, list(record), "its first row")
            text = record.get(source.column)
            if not isinstance(text, str):
                yield Dropped(split.file, place, "no_text")
            elif len(text) * 4 > limit and len(text.encode(errors="replace")) > limit:
                yield Dropped(split.file, place, "too_big")
            else:
                yield Document(split.file, place, text)


def _rows(source: TextSource, number: int, num_shards: int) -> Iterator[dict[str, Any]]:
    name = source.files[0]
    if _is_saved(name):
        dataset = _saved(source).to_iterable_dataset(num_shards=num_shards)
    else:
        dataset = _streaming(source)
    if dataset.num_shards != num_shards:
        raise DataError(
            f"dataset {name} has {dataset.num_shards} shards, {num_shards} when the preparation"
            " began; start again"
        )
    yield from dataset.shard(num_shards=num_shards, index=number)


def _is_saved(name: str) -> bool:
    return any(
        os.path.exists(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json")
    )


def _saved(source: TextSource) -> Any:
    import datasets

    found = datasets.load_from_disk(source.files[0])
    if isinstance(found, datasets.DatasetDict):
        if source.split not in found:
            raise DataError(
                f"dataset {source.files[0]} has no split {source.split!r};"
                f" it has {', '.join(found)}: name one with --split"
            )
        found = found[source.split]
    return _only_text(found, source)


@functools.lru_cache(maxsize=1)
def _streaming(source: TextSource) -> Any:
    """Open a stream once per process, because opening lists the files on the hub."""
    import datasets

    name, split = source.files[0], source.split
    return _only_text(
        datasets.load_dataset(name, source.subset, split=split, streaming=True), source
    )


def _only_text(dataset: Any, source: TextSource) -> Any:
    """Select the text column, unless a stream does not know its columns."""
    if dataset.features is None:
        return dataset
    name, features = source.files[0], dataset.features
    if source.column not in features:
        raise no_column(name, source.column, list(features), "its schema")
    kind = getattr(features[source.column], "dtype", "no text")
    if kind not in ("string", "large_string"):
        raise DataError(
            f"{name} holds {kind} in column {source.column!r}, expected strings; name another"
            " column with --column"
        )
    return dataset.select_columns([source.column])


@contextlib.contextmanager
def _naming_dataset(name: str) -> Iterator[None]:
    from datasets.exceptions import DatasetsError

    remedy = "check the name, --subset and --split, or the network (HF_HUB_OFFLINE is respected)"
    try:
        with naming(f"dataset {name}", remedy):
            yield
    except (DatasetsError, RuntimeError, KeyError) as error:
        raise DataError(f"cannot read dataset {name}: {first_line(error)}; {remedy}") from error


@contextlib.contextmanager
def _naming_break(name: str) -> Iterator[None]:
    """Raise SystemFault if the network fails while rows are read."""
    try:
        yield
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}  # of any client library of the hub
        if not kinds & {"ConnectionError", "TimeoutError", "TransportError"}:
            raise
        raise SystemFault(
            f"the stream of dataset {name} failed: {first_line(error)}; start the same command"
            " again, finished work is kept"
        ) from error
