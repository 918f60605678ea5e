"""Shards give back what was written, in any order asked, and say what is wrong with them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from shard_files import add_documents, flip, random_columns, write_set

from fitb.base.errors import DataError
from fitb.base.fsio import sha256_file
from fitb.shards import mmap
from fitb.shards.documents import MOST_DOCUMENTS
from fitb.shards.mmap import map_table
from fitb.shards.shard_set import ShardSet
from fitb.shards.write import write_documents, write_shard


@pytest.mark.parametrize("length", [8, 13, 64])
@pytest.mark.parametrize("shard_rows", [1, 7, 50, 1000])
def test_rows_come_back_in_the_asked_order_from_any_shard(tmp_path, length, shard_rows):
    columns = random_columns(50, length)
    write_set(tmp_path, columns, shard_rows)
    shards = ShardSet.open(tmp_path, "train")
    assert shards.num_rows == sum(shards.shard_rows) == 50
    asked = np.random.default_rng(1).integers(0, 50, 200)
    rows = shards.read(asked)
    assert rows.input_ids.dtype == np.int64
    assert rows.word_starts.dtype == np.bool_
    assert (rows.input_ids == columns.input_ids[asked]).all()
    assert (rows.word_starts == columns.word_starts[asked]).all()
    assert shards.read(np.array([], dtype=np.int64)).input_ids.shape == (0, length)


def test_offsets_come_back_from_validation_and_are_refused_for_train(tmp_path):
    columns = random_columns(20, 16)
    write_set(tmp_path, columns, 6, split="validation")
    asked = np.array([19, 0, 7, 7])
    offsets = ShardSet.open(tmp_path, "validation").read_offsets(asked)
    assert (offsets.offset_begin == columns.offset_begin[asked]).all()
    assert (offsets.offset_end == columns.offset_end[asked]).all()
    write_set(tmp_path, columns, 6, split="train")
    train = ShardSet.open(tmp_path, "train")
    with pytest.raises(DataError, match="has no offsets"):
        train.read_offsets(asked)
    assert (train.document_numbers(asked) == asked // 6 * MOST_DOCUMENTS + asked).all()


@pytest.mark.parametrize("rows", [[-1], [0, 50]])
def test_a_row_that_does_not_exist_is_an_index_error(tmp_path, rows):
    write_set(tmp_path, random_columns(50, 8), 20)
    with pytest.raises(IndexError, match="which has 50"):
        ShardSet.open(tmp_path, "train").read(np.array(rows))


def mapped(path):
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


@pytest.mark.parametrize(
    ("vocab_size", "expected"),
    [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_ids_take_the_smallest_type_and_word_starts_are_little_endian_bits(
    tmp_path, vocab_size, expected
):
    columns = random_columns(4, 13, vocab_size)
    columns.input_ids[0, 0] = vocab_size - 1
    columns.word_starts[:] = np.arange(13) % 9 == 0
    write_shard(tmp_path / "a.arrow", columns, vocab_size=vocab_size, with_offsets=False)
    table = mapped(tmp_path / "a.arrow")
    assert table.schema.field("input_ids").type == pa.list_(pa.type_for_alias(expected), 13)
    assert table["input_ids"].to_pylist() == columns.input_ids.tolist()
    assert table["word_starts"].to_pylist() == [[1, 2]] * 4


def test_columns_are_views_of_the_file(shard_set):
    shards = ShardSet.open(shard_set, "train")
    before = pa.total_allocated_bytes()
    columns = shards._mapped.columns(0)
    assert pa.total_allocated_bytes() - before < 1000
    assert not any(column.flags.writeable or column.flags.owndata for column in columns.values())


def test_datasets_opens_a_shard_file(shard_set):
    from datasets import Dataset

    dataset = Dataset.from_file(str(shard_set / "validation-00000.arrow"))
    shards = ShardSet.open(shard_set, "validation")
    assert dataset[0]["input_ids"] == shards.read(np.array([0])).input_ids[0].tolist()
    assert set(dataset.column_names) >= {"word_starts", "doc_begin", "offset_end"}


def count_maps(monkeypatch):
    """Return a list that gets the path of each file that is mapped and hashed."""
    maps = []

    def counted(path, *rest):
        maps.append(path)
        return map_table(path, *rest)

    monkeypatch.setattr(mmap, "map_table", counted)
    return maps


def test_a_shard_is_hashed_once_though_many_threads_read_it(shard_set, monkeypatch):
    hashed = count_maps(monkeypatch)
    shards = ShardSet.open(shard_set, "train")
    assert not hashed
    rows = np.arange(shards.num_rows)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: shards.read(rows).input_ids, range(8)))
    assert len(hashed) == len(shards.shard_rows) > 1
    assert all((result == results[0]).all() for result in results)


def mapped_files(folder):
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name for line in lines if str(folder) in line}


def test_few_shards_stay_mapped_and_none_is_hashed_while_it_is(tmp_path, monkeypatch):
    columns = random_columns(50, 8)
    write_set(tmp_path, columns, 5)
    hashed = count_maps(monkeypatch)
    shards = ShardSet.open(tmp_path, "train", max_mapped=3)
    for asked in [np.arange(50), np.arange(50)[::-1], np.array([0, 49, 25])]:
        assert (shards.read(asked).input_ids == columns.input_ids[asked]).all()
    assert mapped_files(tmp_path) == {f"train-{number:05d}.arrow" for number in (0, 5, 9)}
    assert len(hashed) == 10 + 10 + 2  # the shard of row 49 was mapped still


def test_a_file_url_is_read_in_place(shard_set):
    there = ShardSet.open(f"file://{shard_set}", "train")
    assert there == ShardSet.open(str(shard_set), "train")
    assert there.cache is None
    assert there.tokenizer_folder == shard_set / "tokenizer"


def test_where_documents_come_from_is_read_back(tmp_path):
    draw = np.random.default_rng(2)
    written = {
        "file": draw.integers(0, 9, 12, dtype=np.int32),
        "place": draw.integers(0, 2**40, 12),
        "chars": draw.integers(1, 2**20, 12, dtype=np.int32),
        "digest": draw.integers(0, 256, (12, 16), dtype=np.uint8),
    }
    written["digest"][3:5] = 0  # no byte of a digest is an end
    write_set(tmp_path, random_columns(12, 8), 6)
    add_documents(tmp_path, 1, **written)
    table = ShardSet.open(tmp_path, "train").documents(1)
    kinds = ["int32", "int64", "int32", "fixed_size_binary[16]"]
    assert [str(kind) for kind in table.schema.types] == kinds
    for name in ("file", "place", "chars"):
        assert table[name].to_pylist() == written[name].tolist()
    assert table["digest"].to_pylist() == [bytes(digest) for digest in written["digest"]]
    write_documents(tmp_path / "a", **{name: column[:0] for name, column in written.items()})
    assert mapped(tmp_path / "a").num_rows == 0


def test_documents_that_are_not_there_or_not_right_are_named(tmp_path):
    write_set(tmp_path, random_columns(12, 8), 6)
    one = np.ones(12, np.int64)
    add_documents(tmp_path, 1, file=one, place=one, chars=one, digest=np.ones((12, 16), np.uint8))
    shards = ShardSet.open(tmp_path, "train")
    with pytest.raises(DataError, match=r"no table of the documents of train-00000\.arrow"):
        shards.documents(0)
    path = tmp_path / "train-00001.documents.arrow"
    flip(path, -20)
    with pytest.raises(DataError, match=r"documents\.arrow is damaged: expected sha256"):
        shards.documents(1)
    path.unlink()
    with pytest.raises(DataError, match=r"documents\.arrow is missing"):
        shards.documents(1)
    shards.read(np.arange(12))  # rows do without


def test_a_folder_without_a_manifest_is_no_shard_set(tmp_path):
    with pytest.raises(DataError, match=r"is not a shard set: it has no manifest\.json"):
        ShardSet.open(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format_version": 2,', "damaged"),
        ("[" * 99_999, "damaged"),
        ("9" * 9999, "damaged"),
        ("\0", "damaged"),
        ("[]", "format_version"),
        ('{"format_version": 1}', "format_version 1, expected 2; use the version of fitb"),
        ('{"format_version": 99}', "format_version 99, expected 2; use the version of fitb"),
        ('{"format_version": 2, "length": 8}', "lacks fingerprint, shards"),
    ],
    ids=range(8),
)
def test_what_is_no_manifest_is_named(tmp_path, text, said):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=rf"manifest\.json .*{said}"):
        ShardSet.open(tmp_path, "train")


def test_an_unknown_split_names_the_nearest(shard_set):
    with pytest.raises(DataError, match=r"no split 'valid' \(nearest: validation\)"):
        ShardSet.open(shard_set, "valid")


@pytest.mark.parametrize(
    ("kept", "said"), [(None, "is missing"), (-1, r"has \d+ bytes, expected \d+")]
)
def test_a_missing_or_torn_shard_is_named_when_the_set_is_opened(copied, kept, said):
    path = copied / "train-00001.arrow"
    if kept is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"train-00001\.arrow {said}"):
        ShardSet.open(copied, "train")


def test_a_flipped_bit_is_found_when_its_shard_is_first_read_and_only_then(copied):
    path = copied / "train-00001.arrow"
    expected = sha256_file(path)
    flip(path, path.stat().st_size // 2)
    shards = ShardSet.open(copied, "train")
    shards.read(np.arange(shards.shard_rows[0]))
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            shards.read(np.array([0, shards.shard_rows[0]]))
        message = str(caught.value)
        assert all(part in message for part in (path.name, expected, sha256_file(path), "prepare"))
