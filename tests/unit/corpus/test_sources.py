"""The union of all units is the input, each document once, wherever and however it is cut."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import http.server
import json
import lzma
import random
import re
import subprocess
import sys
import textwrap
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import zstandard
from moto.server import ThreadedMotoServer

from fitb.corpus import tables
from fitb.corpus.sources import Document, Dropped, Plan, Source, Unit, plan, read_unit
from fitb.errors import ConfigError, DataError, SystemFault

BOM = b"\xef\xbb\xbf"
LIMIT = 1e-6 * 40  # megabytes: 40 bytes
COMPRESSORS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def read_all(source, **sizes):
    planned = plan(source, **sizes)
    assert [unit.number for unit in planned.units] == list(range(len(planned.units)))
    return [found for unit in planned.units for found in read_unit(source, planned, unit)]


def texts(source, **sizes):
    return [found.text for found in read_all(source, **sizes)]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def decoded(place, raw, limit):
    if len(raw) > limit:
        return Dropped(0, place, "too_big")
    try:
        return Document(0, place, raw.rstrip(b"\r").decode())
    except UnicodeDecodeError:
        return Dropped(0, place, "invalid_utf8")


def naive_lines(data, limit):
    place = len(BOM) if data.startswith(BOM) else 0
    for line in data[place:].split(b"\n"):
        if line.strip():
            yield decoded(place, line, limit)
        place += len(line) + 1


def naive_blocks(data, limit):
    place = len(BOM) if data.startswith(BOM) else 0
    block, begin = [], None
    for line in [*data[place:].split(b"\n"), b""]:
        if line.strip():
            begin = place if begin is None else begin
            block.append(line)
        elif block:
            yield decoded(begin, b"\n".join(block), limit)
            block, begin = [], None
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
def test_units_of_any_size_hold_every_document_once(data, document, tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", data)
    source = Source("text", (path,), document=document, max_document_mb=LIMIT)
    naive = list((naive_lines if document == "line" else naive_blocks)(data, 40))
    for read_bytes in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr("fitb.corpus.lines._READ_BYTES", read_bytes)
        monkeypatch.setattr("fitb.corpus.lines._SEEK_BYTES", read_bytes)
        for unit_bytes in [*range(1, min(len(data), 30)), 1000]:
            assert read_all(source, unit_mb=unit_bytes / 1e6) == naive


@pytest.mark.parametrize("document", ["line", "block"])
def test_random_bytes_are_cut_without_loss(document, tmp_path):
    draw = random.Random(3)
    letters = [b"a", b"bc", b"\n", b"\n", b"\n\n", b" ", b"\r\n", b"\xc3\xa9", b"\xff", b"\t", BOM]
    for _ in range(150):
        data = b"".join(draw.choices(letters, k=60))
        path = write(tmp_path / "a.txt", data)
        source = Source("text", (path,), document=document, max_document_mb=1e-6 * 12)
        naive = list((naive_lines if document == "line" else naive_blocks)(data, 12))
        for unit_bytes in (1, 2, 5, 17):
            assert read_all(source, unit_mb=unit_bytes / 1e6) == naive, data


def test_units_are_slices_of_about_the_size_asked_for_and_tile_the_file(tmp_path):
    path = write(tmp_path / "a.txt", b"".join(b"%06d\n" % number for number in range(10_000)))
    planned = plan(Source("text", (path,), document="line"), unit_mb=0.01)
    assert planned.units[0].begin == 0
    assert planned.units[-1].end == planned.file_bytes[0] == 70_000
    for one, two in zip(planned.units, planned.units[1:], strict=False):
        assert one.end == two.begin
        assert one.end % 7 == 0
        assert 10_000 <= one.end - one.begin < 10_007


def test_a_plan_depends_on_the_input_alone_and_goes_through_json(tmp_path):
    path = write(tmp_path / "a.txt", b"one\n\ntwo\n\nthree\n\n" * 50)
    source = Source("text", (path,))
    planned = plan(source, unit_mb=1e-4)
    assert planned == plan(source, unit_mb=1e-4)
    value = json.loads(json.dumps(dataclasses.asdict(planned)))
    units = tuple(Unit(**unit) for unit in value["units"])
    rest = (tuple(value[name]) for name in ("files", "file_bytes", "stamps"))
    files, file_bytes, stamps = rest
    assert Plan(files, file_bytes, units, stamps) == planned
    raw = json.loads(json.dumps(dataclasses.asdict(source)))
    assert Source(**{**raw, "files": tuple(raw["files"])}) == source


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
    source = Source("jsonl", (path,), max_document_mb=1e-6 * 60)
    for unit_bytes in (1, 3, 20, 50, 10_000):
        assert read_all(source, unit_mb=unit_bytes / 1e6) == expected
    deep = Source("jsonl", (write(tmp_path / "deep.jsonl", b"[" * 100_000),))
    assert read_all(deep) == [Dropped(0, 0, "invalid_json")]


def test_a_column_that_the_first_record_lacks_is_an_error_with_the_nearest(tmp_path):
    path = write(tmp_path / "a.jsonl", b'[]\n{"texts": "a", "id": 1}\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl has no column 'text'.*nearest: texts.*--column"):
        plan(Source("jsonl", (path,)))
    assert read_all(Source("jsonl", (path,), column="texts"))[1] == Document(0, 3, "a")


def parquet(path, values, column="text", rows=7, kind=None):
    table = pa.table({"id": list(range(len(values))), column: pa.array(values, kind)})
    pq.write_table(table, path, row_group_size=rows)
    return str(path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary("int32", "string")])
def test_parquet_is_cut_at_row_groups(kind, tmp_path):
    values = [None if n % 11 == 3 else f"row {n} caf\u00e9" for n in range(100)]
    path = parquet(tmp_path / "a.parquet", pa.array(values).cast(kind), kind=None)
    source = Source("parquet", (path,))
    expected = [
        Dropped(0, n, "no_text") if value is None else Document(0, n, value)
        for n, value in enumerate(values)
    ]
    counts = set()
    for unit_bytes in (1, 200, 10**6):
        assert read_all(source, unit_mb=unit_bytes / 1e6) == expected
        counts.add(len(plan(source, unit_mb=unit_bytes / 1e6).units))
    assert {1, 15} <= counts


def test_parquet_values_that_are_too_big_or_no_utf8_cost_only_themselves(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", b"x" * 41, "caf\u00e9".encode()], pa.binary())
    bad = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2])
    path = parquet(tmp_path / "a.parquet", bad)
    assert read_all(Source("parquet", (path,), max_document_mb=LIMIT)) == [
        Document(0, 0, "good"),
        Dropped(0, 1, "invalid_utf8"),
        Dropped(0, 2, "too_big"),
        Document(0, 3, "caf\u00e9"),
    ]


def test_a_parquet_column_that_is_missing_or_no_text_is_an_error(tmp_path):
    path = parquet(tmp_path / "a.parquet", ["a"], column="texts")
    with pytest.raises(DataError, match=r"no column 'text' \(nearest: texts\).*--column"):
        plan(Source("parquet", (path,)))
    with pytest.raises(DataError, match=r"holds int64 in column 'id'.*texts.*--column"):
        plan(Source("parquet", (path,), column="id"))


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_files_are_read_whole_also_in_several_members(suffix, tmp_path):
    compress = COMPRESSORS[suffix]
    data = "\n\n".join(f"block {number} caf\u00e9" for number in range(3000)).encode() + b"\n\n"
    plain = Source("text", (write(tmp_path / "a.txt", data + data),))
    packed = write(tmp_path / f"a.txt.{suffix}", compress(data) + compress(data))
    source = Source("text", (packed,))
    assert len(plan(source, unit_mb=0.001).units) == 1
    assert read_all(source) == read_all(plain)


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("cut", [5, 0.5])
def test_a_torn_compressed_file_is_an_error_that_names_it(suffix, cut, tmp_path):
    data = random.Random(4).randbytes(300_000).hex().encode()
    whole = COMPRESSORS[suffix](b"\n".join(data[n : n + 80] for n in range(0, len(data), 80)))
    keep = len(whole) - cut if cut > 1 else int(len(whole) * cut)
    path = write(tmp_path / f"a.txt.{suffix}", whole[:keep])
    with pytest.raises(DataError, match=rf"cannot read .*a\.txt\.{suffix}: .*; "):
        read_all(Source("text", (path,), document="line"))


def test_a_torn_parquet_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "a.parquet"
    parquet(path, [f"row {n}" for n in range(1000)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet: .*PAR1"):
        plan(Source("parquet", (str(path),)))


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
        plan(Source(kind, (path,)))


def test_text_under_the_name_of_another_format_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.parquet.*take --source text or jsonl"):
        plan(Source("parquet", (write(tmp_path / "a.parquet", b"plain text\n" * 9),)))
    with pytest.raises(DataError, match=r"cannot read .*a\.gz: Not a gzipped file"):
        plan(Source("text", (write(tmp_path / "a.gz", b"plain text\n"),)))
    with pytest.raises(DataError, match="zip archive"):
        plan(Source("text", (write(tmp_path / "a.zip", b"plain text\n"),)))


def test_globs_are_read_in_sorted_order_and_a_file_named_twice_once(tmp_path):
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "d.md"):
        write(tmp_path / name, name.encode())
    write(tmp_path / "empty.txt", b"")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    files = (str(tmp_path / "b.txt"), str(tmp_path / "**/*.txt"), f"file://{tmp_path}/a.txt")
    source = Source("text", files)
    assert texts(source) == ["b.txt", "a.txt", "deep/er/c.txt"]
    planned = plan(source)
    assert [name.removeprefix(f"{tmp_path}/") for name in planned.files] == [
        "b.txt", "a.txt", "deep/er/c.txt", "empty.txt"
    ]  # fmt: skip
    odd = write(tmp_path / "[x].txt", b"a name that looks like a glob")
    assert texts(Source("text", (odd,))) == ["a name that looks like a glob"]


def test_what_is_missing_is_named(tmp_path):
    for files, message in (
        ("gone.txt", r"gone\.txt does not exist"),
        ("*.txt", r"\*\.txt matches no file"),
        ("", "is a folder"),
    ):
        with pytest.raises(DataError, match=message):
            plan(Source("text", (str(tmp_path / files),)))
    for kind in ("text", "jsonl", "parquet"):
        with pytest.raises(DataError, match=r"nothing to read in .*empty"):
            plan(Source(kind, (write(tmp_path / "empty", b""),)))
    for suffix, compress in COMPRESSORS.items():
        empty = write(tmp_path / f"empty.{suffix}", b"")
        with pytest.raises(DataError, match="nothing to read"):
            plan(Source("text", (empty,)))
        assert read_all(Source("text", (write(tmp_path / f"e.{suffix}", compress(b"")),))) == []
    path = write(tmp_path / "a.txt", b"one\n\ntwo\n\n")
    source = Source("text", (path,))
    planned = plan(source)
    write(tmp_path / "a.txt", b"one\n\n")
    with pytest.raises(DataError, match=r"a\.txt ended 5 bytes before.*plan again"):
        list(read_unit(source, planned, planned.units[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "txt"}, "'txt' is unknown.*nearest: text"),
        ({"kind": "text"}, "got no files"),
        ({"kind": "hf", "files": ("a", "b")}, "got 2 names, expected one"),
        ({"kind": "docstrings", "max_document_mb": 0}, "max_document_mb is 0"),
        ({"kind": "docstrings", "document": "page"}, "'page'; take block or line"),
    ],
)
def test_a_wrong_source_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Source(**options)


def test_a_size_that_is_not_positive_is_refused(tmp_path):
    source = Source("text", (write(tmp_path / "a.txt", b"a"),))
    for sizes in ({"unit_mb": 0}, {"max_mb": -1}):
        with pytest.raises(ConfigError, match="expected more than 0 megabytes"):
            plan(source, **sizes)


@pytest.mark.parametrize("unit_mb", [0.0005, 64])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_max_mb_takes_the_front_of_the_input_to_the_next_document(suffix, unit_mb, tmp_path):
    files = []
    for name in ("a", "b", "c"):
        data = b"".join(b"%s%098d\n" % (name.encode(), number) for number in range(100))
        pack = COMPRESSORS.get(suffix.strip("."), bytes)
        files.append(write(tmp_path / f"{name}.txt{suffix}", pack(data)))
    source = Source("text", tuple(files), document="line")
    everything = texts(source)
    for max_mb in (0.000001, 0.0051, 0.0152, 0.0299):
        taken = texts(source, max_mb=max_mb, unit_mb=unit_mb)
        assert taken == everything[: len(taken)]
        if not suffix:
            assert max_mb * 1e6 <= 100 * len(taken) < max_mb * 1e6 + 100
    assert texts(source, max_mb=1, unit_mb=unit_mb) == everything


def test_max_mb_takes_row_groups_of_parquet(tmp_path):
    values = [f"{number:0100d}" for number in range(100)]
    files = tuple(parquet(tmp_path / f"{n}.parquet", values, rows=10) for n in range(3))
    source = Source("parquet", files)
    taken = read_all(source, max_mb=0.0125, unit_mb=1e-6)
    assert taken == read_all(source)[: len(taken)]
    assert 90 <= len(taken) < 140  # a row group, and what Parquet adds to text


MEMORY = """
    import re, sys
    from pathlib import Path
    from fitb.corpus.sources import Dropped, Source, plan, read_unit
    path, kind, document = sys.argv[1:]

    def peak_kb():  # getrusage's would be that of the process which started this one
        return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

    with open(path, "wb") as file:
        file.write(b'{"text": "first"}\\n\\n')
        file.truncate(10**9)
        file.seek(0, 2)
        file.write(b'\\n\\n{"text": "last"}\\n')
    source = Source(kind, (path,), document=document)
    plan(Source("text", (__file__,)))
    before = peak_kb()
    planned = plan(source, unit_mb=300)
    found = [item for unit in planned.units for item in read_unit(source, planned, unit)]
    after = peak_kb()
    assert len(found) == 3, found
    assert found[1] == Dropped(0, 19, "too_big"), found[1]
    print((after - before) / 1024)
"""


@pytest.mark.parametrize(
    ("kind", "document"), [("text", "line"), ("text", "block"), ("jsonl", "line")]
)
def test_a_line_of_a_gigabyte_is_skipped_in_less_than_150_mb(kind, document, tmp_path):
    script = write(tmp_path / "script.py", textwrap.dedent(MEMORY).encode())
    path = tmp_path / "big.txt"
    done = subprocess.run(
        [sys.executable, script, str(path), kind, document], capture_output=True, text=True
    )
    path.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files with ranges, counted."""

    ranges: list[str] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        asked = self.headers.get("Range")
        if not asked:
            super().do_GET()
            return
        self.ranges.append(asked)
        with open(self.translate_path(self.path), "rb") as file:
            data = file.read()
        begin, end = asked.removeprefix("bytes=").split("-")
        part = data[int(begin) : int(end) + 1 if end else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def served(tmp_path):
    """A folder and its URL, on a server that knows ranges."""
    folder = tmp_path / "served"
    folder.mkdir()
    Handler.ranges = []

    def handler(*args):
        return Handler(*args, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_files_behind_a_url_are_read_in_ranges(served):
    folder, url = served
    data = "".join(f"line {number} caf\u00e9\n" for number in range(30_000)).encode()
    local = write(folder / "a.txt", data)
    write(folder / "a.txt.gz", gzip.compress(data))
    parquet(folder / "a.parquet", ["one", "two"])
    remote = Source("text", (f"{url}/a.txt",), document="line")
    here = Source("text", (local,), document="line")
    assert read_all(remote, unit_mb=0.1) == read_all(here, unit_mb=0.1)
    assert plan(remote, unit_mb=0.1).units == plan(here, unit_mb=0.1).units
    assert Handler.ranges
    packed = Source("text", (f"{url}/a.txt.gz",), document="line")
    assert read_all(packed) == read_all(here)
    assert texts(Source("parquet", (f"{url}/a.parquet",))) == ["one", "two"]
    with pytest.raises(DataError, match=r"gone\.txt does not exist"):
        plan(Source("text", (f"{url}/gone.txt",)))


def test_a_server_that_goes_away_in_the_middle_is_no_fault_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("line\n" * 1000)
    (tmp_path / "b.txt").write_text("line\n" * 1000)

    def handler(*args):
        return Handler(*args, directory=str(tmp_path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        source = Source("text", (f"{url}/a.txt", f"{url}/b.txt"), document="line")
        planned = plan(source)
        server.shutdown()
        thread.join()
    with pytest.raises(SystemFault, match=r"b\.txt: .* start again, what is done stays"):
        list(read_unit(source, planned, planned.units[1]))


def test_globs_of_urls_are_expanded_in_sorted_order():
    fs = fsspec.filesystem("memory")
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.md"):
        fs.pipe_file(f"/globbed/{name}", name.encode())
    source = Source("text", ("memory://globbed/**/*.txt", "memory://globbed/a.txt"))
    assert sorted(texts(source)) == ["a.txt", "b.txt", "deep/c.txt"]
    assert list(plan(source).files) == sorted(plan(source).files)
    with pytest.raises(DataError, match="matches no file"):
        plan(Source("text", ("memory://globbed/*.gone",)))
    with pytest.raises(DataError, match="is a folder"):
        plan(Source("text", ("memory://globbed",)))
    with pytest.raises(DataError, match="cannot read nosuch://a"):
        plan(Source("text", ("nosuch://a",)))


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket of an S3 server on this machine."""
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    fs.mkdir("bucket")
    yield fs
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_objects_of_a_bucket_are_read_in_ranges(bucket):
    data = b"".join(b"line %d\n" % number for number in range(20_000))
    bucket.pipe_file("bucket/a/x.txt", data)
    bucket.pipe_file("bucket/a/y.txt.gz", gzip.compress(data))
    bucket.pipe_file("bucket/torn.txt.zst", COMPRESSORS["zst"](data)[:-5])
    source = Source("text", ("s3://bucket/a/*", "s3://bucket/a/x.txt"), document="line")
    planned = plan(source, unit_mb=0.05)
    assert planned.files == ("s3://bucket/a/x.txt", "s3://bucket/a/y.txt.gz")
    assert len(planned.units) == 6
    assert texts(source, unit_mb=0.05) == data.decode().splitlines() * 2
    with pytest.raises(DataError, match=r"cannot read s3://bucket/torn\.txt\.zst: Truncated"):
        read_all(Source("text", ("s3://bucket/torn.txt.zst",), document="line"))
    with pytest.raises(DataError, match=r"s3://bucket/gone\.txt does not exist"):
        plan(Source("text", ("s3://bucket/gone.txt",)))


ROWS = [{"id": n, "text": None if n % 5 == 2 else f"row {n}"} for n in range(40)]


def expected_rows(shards):
    """Documents of a dataset, of which every shard holds a run of ROWS."""
    return [
        Dropped(shard, place, "no_text")
        if row["text"] is None
        else Document(shard, place, row["text"])
        for shard, rows in enumerate(shards)
        for place, row in enumerate(rows)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dataset_of_data_files_is_read_shard_by_shard(kind, tmp_path):
    for number in range(4):
        rows = ROWS[10 * number : 10 * number + 10]
        name = tmp_path / f"train-{number}.{kind}"
        if kind == "jsonl":
            name.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), name)
    source = Source("hf", (str(tmp_path),))
    planned = plan(source)
    assert len(planned.units) == len(planned.files) == 4
    assert read_all(source) == expected_rows([ROWS[n : n + 10] for n in range(0, 40, 10)])
    taken = read_all(source, max_mb=60 / 1e6)
    assert taken == read_all(source)[: len(taken)]
    assert 60 <= sum(len(found.text) for found in taken if isinstance(found, Document)) < 66
    with pytest.raises(DataError, match="no column 'texts'.*nearest: text.*--column"):
        read_all(Source("hf", (str(tmp_path),), column="texts"))


def test_a_saved_dataset_is_read_in_as_many_shards_as_units_fit(tmp_path):
    import datasets

    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select(range(5))}).save_to_disk(
        tmp_path / "both"
    )
    for name in ("one", "both"):
        source = Source("hf", (str(tmp_path / name),))
        found = read_all(source)
        assert found == expected_rows([ROWS])
        small = read_all(source, unit_mb=50 / 1e6)
        assert [dataclasses.replace(item, file=0, place=0) for item in small] == [
            dataclasses.replace(item, file=0, place=0) for item in found
        ]
        assert len(plan(source, unit_mb=50 / 1e6).units) > 3
    assert len(read_all(Source("hf", (str(tmp_path / "both"),), split="test"))) == 5
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        plan(Source("hf", (str(tmp_path / "both"),), split="dev"))
    with pytest.raises(DataError, match="holds int64 in column 'id'"):
        plan(Source("hf", (str(tmp_path / "one"),), column="id"))


def test_errors_of_datasets_are_one_line_that_names_the_dataset(tmp_path):
    write(tmp_path / "data" / "train.jsonl", b'{"text": "a"}\n')
    for source in (
        Source("hf", (str(tmp_path / "gone"),)),
        Source("hf", ("no-such-owner/no-such-dataset",)),
        Source("hf", (str(tmp_path / "data"),), split="dev"),
        Source("hf", (str(tmp_path / "data"),), subset="none"),
    ):
        with pytest.raises(DataError, match="cannot read dataset") as caught:
            plan(source)
        assert source.files[0] in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_stream_that_breaks_off_may_go_on_next_time(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    source = Source("hf", (str(tmp_path / "data"),))
    planned = plan(source)

    def broken(*args):
        yield {"text": "one"}
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(tables, "_rows", broken)
    found = read_unit(source, planned, planned.units[0])
    assert next(found) == Document(0, 0, "one")
    with pytest.raises(SystemFault, match="broke off: Connection reset by peer; start the same"):
        next(found)
