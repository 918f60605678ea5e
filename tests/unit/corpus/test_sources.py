"""The union of all splits is the input, each document once, wherever and however it is cut."""

import bz2
import gzip
import lzma
import random
import re

import pytest
from reading import COMPRESSORS, LIMIT, parquet, read_all, texts, write

from fitb.base.errors import DataError
from fitb.corpus.sources import Document, Dropped, TextSource, plan, read_split

BOM = b"\xef\xbb\xbf"


def decoded(place, raw, limit):
    if len(raw) > limit:
        return Dropped(0, place, "too_big")
    try:
        return Document(0, place, raw.rstrip(b"\r").decode())
    except UnicodeDecodeError:
        return Dropped(0, place, "invalid_utf8")


def naive(document, data, limit):
    """The documents of a file, line by line."""
    place = len(BOM) if data.startswith(BOM) else 0
    block, begin = [], place
    for line in [*data[place:].split(b"\n"), b""]:
        if line.strip():
            if not block:
                begin = place
            block.append(line)
        if block and (document == "line" or not line.strip()):
            yield decoded(begin, b"\n".join(block), limit)
            block = []
        place += len(line) + 1


HOSTILE = [
    b"one\r\ntwo\r\n \t\r\n\r\nthree\r\n",
    BOM + b"first\n\nlast",
    BOM + b"\n\n" + BOM + b"a\n",
    b"a\n\n \n\t\n\n",
    b"   \n\n  \n  ",
    b"no end",
    b"\n\n\n\nlate\n \n",
    "na\u00efve \u4e2d\u6587\n\n\U0001f600 caf\u00e9\n\u00a0\n\u2028x\n".encode() * 3,
    b"good\n\nbad \xff bytes\n\ngood again\n\n\xc3\n\n\xa9\n",
    b"x" * 100 + b"\n\nshort\n\n" + b"y" * 41 + b"\n\n" + b"z" * 40 + b"\n\n" + b"ab\n" * 20,
    b"a\n" + b" " * 90 + b"\nb\n" + b"\x00" * 50 + b"\nc\n\nd",
    b"carriage\rreturn\r\r\n\r\rblank\r\n\r\n",
    b"\x0b\x0c\nform\x0cfeed\n\x0c\nend\n",
]


@pytest.mark.parametrize("document", ["line", "block"])
@pytest.mark.parametrize("data", HOSTILE)
def test_splits_of_any_size_hold_every_document_once(data, document, tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", data)
    source = TextSource("text", (path,), document=document, max_document_mb=LIMIT)
    expected = list(naive(document, data, 40))
    for read_bytes in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr("fitb.corpus.lines._READ_BYTES", read_bytes)
        monkeypatch.setattr("fitb.corpus.lines._SEEK_BYTES", read_bytes)
        for split_bytes in [*range(1, min(len(data), 30)), 1000]:
            assert read_all(source, split_mb=split_bytes / 1e6) == expected


@pytest.mark.parametrize("document", ["line", "block"])
def test_random_bytes_are_cut_without_loss(document, tmp_path):
    draw = random.Random(3)
    letters = [b"a", b"bc", b"\n", b"\n", b"\n\n", b" ", b"\r\n", b"\xc3\xa9", b"\xff", b"\t", BOM]
    for _ in range(150):
        data = b"".join(draw.choices(letters, k=60))
        path = write(tmp_path / "a.txt", data)
        source = TextSource("text", (path,), document=document, max_document_mb=1e-6 * 12)
        expected = list(naive(document, data, 12))
        for split_bytes in (1, 2, 5, 17):
            assert read_all(source, split_mb=split_bytes / 1e6) == expected, data


def test_splits_are_slices_of_about_the_size_asked_for_and_tile_the_file(tmp_path):
    path = write(tmp_path / "a.txt", b"".join(b"%06d\n" % number for number in range(10_000)))
    planned = plan(TextSource("text", (path,), document="line"), split_mb=0.01)
    assert planned.splits[0].begin == 0
    assert planned.splits[-1].end == planned.file_bytes[0] == 70_000
    for one, two in zip(planned.splits, planned.splits[1:], strict=False):
        assert one.end == two.begin
        assert one.end % 7 == 0
        assert 10_000 <= one.end - one.begin < 10_007


def test_json_lines_give_the_column_and_say_why_a_line_is_left_out(tmp_path):
    lines = [
        BOM + b'{"text": "one\\nline", "id": 1}',
        b"",
        b"{broken",
        b'["a list"]',
        b'{"id": 2}',
        b'{"text": null}',
        b'{"text": 7}',
        b'{"text": "\xff"}',
        b'{"text": "' + b"x" * 100 + b'"}',
        b"[" * 5000,
        b'{"text": "caf\\u00e9 \xc3\xa9 \\ud800"}\r',
    ]
    data = b"\n".join(lines)
    path = write(tmp_path / "a.jsonl", data)
    places = [data.index(line) for line in lines]
    expected = [
        Document(0, places[0] + 3, "one\nline"),
        Dropped(0, places[2], "invalid_json"),
        Dropped(0, places[3], "invalid_json"),
        *(Dropped(0, places[number], "no_text") for number in (4, 5, 6)),
        Dropped(0, places[7], "invalid_utf8"),
        Dropped(0, places[8], "too_big"),
        Dropped(0, places[9], "too_big"),
        Document(0, places[10], "caf\u00e9 \u00e9 \ud800"),
    ]
    source = TextSource("jsonl", (path,), max_document_mb=1e-6 * 60)
    for split_bytes in (1, 3, 20, 50, 10_000):
        assert read_all(source, split_mb=split_bytes / 1e6) == expected
    deep = TextSource("jsonl", (write(tmp_path / "deep.jsonl", b"[" * 100_000),))
    assert read_all(deep) == [Dropped(0, 0, "invalid_json")]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ('[{"text": "a"}, {"text": "b"}]', "jq -c '.[]'"),
        ('[\n  {\n    "text": "a"\n  }\n]\n', "jq -c '.[]'"),
        ('{\n  "text": "a"\n}\n', "jq -c ."),
    ],
)
def test_json_that_is_no_lines_is_told_with_what_makes_lines_of_it(tmp_path, text, remedy):
    """Every line was dropped, and the remedy was to look at --column."""
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(remedy)):
        read_all(TextSource("jsonl", (str(path),)))


def test_a_column_that_the_first_record_lacks_is_an_error_with_the_nearest(tmp_path):
    path = write(tmp_path / "a.jsonl", b'[]\n{"texts": "a", "id": 1}\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl has no column 'text'.*nearest: texts.*--column"):
        plan(TextSource("jsonl", (path,)))
    assert read_all(TextSource("jsonl", (path,), column="texts"))[1] == Document(0, 3, "a")


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (None, "--source parquet"),
        (gzip.compress(b"a", mtime=0), "suffix .gz"),
        (bz2.compress(b"a"), "suffix .bz2"),
        (lzma.compress(b"a"), "suffix .xz"),
        (COMPRESSORS["zst"](b"a"), "suffix .zst"),
        (b"PK\x03\x04rest", "unpack it"),
        ("text".encode("utf-16"), "iconv"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_file_of_another_format_is_refused_with_what_to_do(kind, data, remedy, tmp_path):
    if data is None:
        parquet(tmp_path / "b.parquet", ["a"])
        data = (tmp_path / "b.parquet").read_bytes()
    path = write(tmp_path / "a.txt", data)
    with pytest.raises(DataError, match=rf"a\.txt is not UTF-8 text but .*{re.escape(remedy)}"):
        plan(TextSource(kind, (path,)))


def test_text_under_the_name_of_another_format_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.parquet.*take --source text or jsonl"):
        plan(TextSource("parquet", (write(tmp_path / "a.parquet", b"plain text\n" * 9),)))
    with pytest.raises(DataError, match=r"a\.gz is not gzip.*remove the suffix"):
        plan(TextSource("text", (write(tmp_path / "a.gz", b"plain text\n"),)))
    with pytest.raises(DataError, match="zip archive"):
        plan(TextSource("text", (write(tmp_path / "a.zip", b"plain text\n"),)))


def test_globs_are_read_in_sorted_order_and_a_file_named_twice_once(tmp_path):
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "d.md"):
        write(tmp_path / name, name.encode())
    write(tmp_path / "empty.txt", b"")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    files = (str(tmp_path / "b.txt"), str(tmp_path / "**/*.txt"), f"file://{tmp_path}/a.txt")
    source = TextSource("text", files)
    read = ["b.txt", "a.txt", "deep/er/c.txt"]
    assert texts(source) == read
    names = [name.removeprefix(f"{tmp_path}/") for name in plan(source).files]
    assert names == [*read, "empty.txt"]
    odd = write(tmp_path / "[x].txt", b"a name that looks like a glob")
    assert texts(TextSource("text", (odd,))) == ["a name that looks like a glob"]


def test_what_is_missing_is_named(tmp_path):
    for files, message in (
        ("gone.txt", r"gone\.txt does not exist"),
        ("*.txt", r"\*\.txt matches no file"),
        ("", "is a folder"),
    ):
        with pytest.raises(DataError, match=message):
            plan(TextSource("text", (str(tmp_path / files),)))
    for kind in ("text", "jsonl", "parquet"):
        with pytest.raises(DataError, match=r"nothing to read in .*empty"):
            plan(TextSource(kind, (write(tmp_path / "empty", b""),)))
    for suffix, compress in COMPRESSORS.items():
        empty = write(tmp_path / f"empty.{suffix}", b"")
        with pytest.raises(DataError, match="nothing to read"):
            plan(TextSource("text", (empty,)))
        assert read_all(TextSource("text", (write(tmp_path / f"e.{suffix}", compress(b"")),))) == []
    path = write(tmp_path / "a.txt", b"one\n\ntwo\n\n")
    source = TextSource("text", (path,))
    planned = plan(source)
    write(tmp_path / "a.txt", b"one\n\n")
    with pytest.raises(DataError, match=r"a\.txt ended 5 bytes early.*start again"):
        list(read_split(source, planned, planned.splits[0]))


@pytest.mark.parametrize("split_mb", [0.0005, 64])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_max_mb_takes_the_front_of_the_input_to_the_next_document(suffix, split_mb, tmp_path):
    files = []
    for name in ("a", "b", "c"):
        data = b"".join(b"%s%098d\n" % (name.encode(), number) for number in range(100))
        pack = COMPRESSORS.get(suffix.strip("."), bytes)
        files.append(write(tmp_path / f"{name}.txt{suffix}", pack(data)))
    source = TextSource("text", tuple(files), document="line")
    everything = texts(source)
    for max_mb in (0.000001, 0.0051, 0.0152, 0.0299):
        taken = texts(source, max_mb=max_mb, split_mb=split_mb)
        assert taken == everything[: len(taken)]
        if not suffix:
            assert max_mb * 1e6 <= 100 * len(taken) < max_mb * 1e6 + 100
    assert texts(source, max_mb=1, split_mb=split_mb) == everything


def test_max_mb_takes_row_groups_of_parquet(tmp_path):
    values = [f"{number:0100d}" for number in range(100)]
    files = tuple(parquet(tmp_path / f"{n}.parquet", values, rows=10) for n in range(3))
    source = TextSource("parquet", files)
    taken = read_all(source, max_mb=0.0125, split_mb=1e-6)
    assert taken == read_all(source)[: len(taken)]
    assert 90 <= len(taken) < 140  # a row group, and what Parquet adds to text
