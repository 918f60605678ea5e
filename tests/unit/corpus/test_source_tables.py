"""Parquet and datasets are cut at row groups and shards, and every row is read once."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import LIMIT, parquet, read_all, write

from fitb.base.errors import DataError, SystemFault
from fitb.corpus import tables
from fitb.corpus.sources import Document, Dropped, TextSource, plan, read_split


def documents(values, file=0):
    return [
        Dropped(file, place, "no_text") if value is None else Document(file, place, value)
        for place, value in enumerate(values)
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary("int32", "string")])
def test_parquet_is_cut_at_row_groups(kind, tmp_path):
    values = [None if n % 11 == 3 else f"row {n} caf\u00e9" for n in range(100)]
    path = parquet(tmp_path / "a.parquet", pa.array(values).cast(kind), kind=None)
    source = TextSource("parquet", (path,))
    expected = documents(values)
    counts = set()
    for split_bytes in (1, 200, 10**6):
        assert read_all(source, split_mb=split_bytes / 1e6) == expected
        counts.add(len(plan(source, split_mb=split_bytes / 1e6).splits))
    assert {1, 15} <= counts


@pytest.mark.parametrize("kind", ["string", "binary", "large_binary", "binary_view"])
def test_parquet_values_that_are_too_big_or_no_utf8_cost_only_themselves(tmp_path, kind):
    values = pa.array([b"good", b"\xff\xfe", b"x" * 41, None, "caf\u00e9".encode()], pa.binary())
    if kind == "string":  # which may hold other bytes than UTF-8 as well
        values = pa.StringArray.from_buffers(5, *values.buffers()[1:], values.buffers()[0])
    else:
        values = values.cast(getattr(pa, kind)())
    path = parquet(tmp_path / "a.parquet", values)
    assert read_all(TextSource("parquet", (path,), max_document_mb=LIMIT)) == [
        Document(0, 0, "good"),
        Dropped(0, 1, "invalid_utf8"),
        Dropped(0, 2, "too_big"),
        Dropped(0, 3, "no_text"),
        Document(0, 4, "caf\u00e9"),
    ]


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    """The merge of two tables ended in a KeyError."""
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="2 columns 'text'.*rename"):
        plan(TextSource("parquet", (str(tmp_path / "a.parquet"),)))


def test_a_parquet_column_that_is_missing_or_no_text_is_an_error(tmp_path):
    path = parquet(tmp_path / "a.parquet", ["a"], column="texts")
    with pytest.raises(DataError, match=r"no column 'text' \(nearest: texts\).*--column"):
        plan(TextSource("parquet", (path,)))
    with pytest.raises(DataError, match=r"holds int64 in column 'id'.*texts.*--column"):
        plan(TextSource("parquet", (path,), column="id"))


TEXTS = [None if n % 5 == 2 else f"row {n}" for n in range(40)]
ROWS = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dataset_of_data_files_is_read_shard_by_shard(kind, tmp_path):
    for number in range(4):
        rows = ROWS[10 * number : 10 * number + 10]
        name = tmp_path / f"train-{number}.{kind}"
        if kind == "jsonl":
            name.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), name)
    source = TextSource("hf", (str(tmp_path),))
    planned = plan(source)
    assert len(planned.splits) == len(planned.files) == 4
    whole = read_all(source)
    assert whole == [found for n in range(4) for found in documents(TEXTS[10 * n : 10 * n + 10], n)]
    taken = read_all(source, max_mb=60 / 1e6)
    assert taken == whole[: len(taken)]
    assert 60 <= sum(len(found.text) for found in taken if isinstance(found, Document)) < 66
    with pytest.raises(DataError, match="no column 'texts'.*nearest: text.*--column"):
        read_all(TextSource("hf", (str(tmp_path),), column="texts"))


def test_a_saved_dataset_is_read_in_as_many_shards_as_units_fit(tmp_path):
    import datasets

    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select(range(5))}).save_to_disk(
        tmp_path / "both"
    )
    for name in ("one", "both"):
        source = TextSource("hf", (str(tmp_path / name),))
        found = read_all(source)
        assert found == documents(TEXTS)
        small = read_all(source, split_mb=50 / 1e6)
        for one, other in zip(small, found, strict=True):
            assert dataclasses.replace(one, file=0, place=0) == dataclasses.replace(other, place=0)
        assert len(plan(source, split_mb=50 / 1e6).splits) > 3
    assert len(read_all(TextSource("hf", (str(tmp_path / "both"),), split="test"))) == 5
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        plan(TextSource("hf", (str(tmp_path / "both"),), split="dev"))
    with pytest.raises(DataError, match="holds int64 in column 'id'"):
        plan(TextSource("hf", (str(tmp_path / "one"),), column="id"))


def test_errors_of_datasets_are_one_line_that_names_the_dataset(tmp_path):
    write(tmp_path / "data" / "train.jsonl", b'{"text": "a"}\n')
    for source in (
        TextSource("hf", (str(tmp_path / "gone"),)),
        TextSource("hf", ("no-such-owner/no-such-dataset",)),
        TextSource("hf", (str(tmp_path / "data"),), split="dev"),
        TextSource("hf", (str(tmp_path / "data"),), subset="none"),
    ):
        with pytest.raises(DataError, match="cannot read dataset") as caught:
            plan(source)
        assert source.files[0] in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_stream_that_breaks_off_may_go_on_next_time(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    source = TextSource("hf", (str(tmp_path / "data"),))
    planned = plan(source)

    def broken(*args):
        yield {"text": "one"}
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(tables, "_rows", broken)
    found = read_split(source, planned, planned.splits[0])
    assert next(found) == Document(0, 0, "one")
    with pytest.raises(SystemFault, match="failed: Connection reset by peer; start the same"):
        next(found)
