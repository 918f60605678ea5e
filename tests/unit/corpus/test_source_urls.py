"""Files behind URLs and in buckets, read in ranges from servers that may leave."""

from __future__ import annotations

import gzip
import http.server
import threading

import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from reading import COMPRESSORS, parquet, read_all, texts, write

from fitb.corpus.sources import TextSource, plan, read_split
from fitb.errors import DataError, SystemFault


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
    remote = TextSource("text", (f"{url}/a.txt",), document="line")
    here = TextSource("text", (local,), document="line")
    assert read_all(remote, split_mb=0.1) == read_all(here, split_mb=0.1)
    assert plan(remote, split_mb=0.1).splits == plan(here, split_mb=0.1).splits
    assert Handler.ranges
    packed = TextSource("text", (f"{url}/a.txt.gz",), document="line")
    assert read_all(packed) == read_all(here)
    assert texts(TextSource("parquet", (f"{url}/a.parquet",))) == ["one", "two"]
    with pytest.raises(DataError, match=r"gone\.txt does not exist"):
        plan(TextSource("text", (f"{url}/gone.txt",)))


def test_a_server_that_goes_away_in_the_middle_is_no_fault_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("line\n" * 1000)
    (tmp_path / "b.txt").write_text("line\n" * 1000)

    def handler(*args):
        return Handler(*args, directory=str(tmp_path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        source = TextSource("text", (f"{url}/a.txt", f"{url}/b.txt"), document="line")
        planned = plan(source)
        server.shutdown()
        thread.join()
    with pytest.raises(SystemFault, match=r"b\.txt: .* start again, what is done stays"):
        list(read_split(source, planned, planned.splits[1]))


def test_globs_of_urls_are_expanded_in_sorted_order():
    fs = fsspec.filesystem("memory")
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.md"):
        fs.pipe_file(f"/globbed/{name}", name.encode())
    source = TextSource("text", ("memory://globbed/**/*.txt", "memory://globbed/a.txt"))
    assert sorted(texts(source)) == ["a.txt", "b.txt", "deep/c.txt"]
    assert list(plan(source).files) == sorted(plan(source).files)
    with pytest.raises(DataError, match="matches no file"):
        plan(TextSource("text", ("memory://globbed/*.gone",)))
    with pytest.raises(DataError, match="is a folder"):
        plan(TextSource("text", ("memory://globbed",)))
    with pytest.raises(DataError, match="cannot read nosuch://a"):
        plan(TextSource("text", ("nosuch://a",)))


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
    source = TextSource("text", ("s3://bucket/a/*", "s3://bucket/a/x.txt"), document="line")
    planned = plan(source, split_mb=0.05)
    assert planned.files == ("s3://bucket/a/x.txt", "s3://bucket/a/y.txt.gz")
    assert len(planned.splits) == 6
    assert texts(source, split_mb=0.05) == data.decode().splitlines() * 2
    with pytest.raises(DataError, match=r"cannot read s3://bucket/torn\.txt\.zst: Truncated"):
        read_all(TextSource("text", ("s3://bucket/torn.txt.zst",), document="line"))
    with pytest.raises(DataError, match=r"s3://bucket/gone\.txt does not exist"):
        plan(TextSource("text", ("s3://bucket/gone.txt",)))
