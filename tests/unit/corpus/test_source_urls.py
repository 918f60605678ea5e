"""Files behind URLs and in buckets, read in ranges from servers that may leave."""

import gzip

import fsspec
import pytest
from file_server import FileServer
from reading import COMPRESSORS, parquet, read_all, texts, write
from s3_server import s3_bucket

from fitb.base.errors import DataError, SystemFault
from fitb.corpus.sources import TextSource, plan, read_split


@pytest.fixture
def server(tmp_path):
    with FileServer(tmp_path) as serving:
        yield serving


def test_files_behind_a_url_are_read_in_ranges(server):
    folder, url = server.folder, server.url
    data = "".join(f"line {number} caf\u00e9\n" for number in range(30_000)).encode()
    local = write(folder / "a.txt", data)
    write(folder / "a.txt.gz", gzip.compress(data))
    parquet(folder / "a.parquet", ["one", "two"])
    remote = TextSource("text", (f"{url}/a.txt",), document="line")
    here = TextSource("text", (local,), document="line")
    assert read_all(remote, split_mb=0.1) == read_all(here, split_mb=0.1)
    assert plan(remote, split_mb=0.1).splits == plan(here, split_mb=0.1).splits
    assert server.ranges
    packed = TextSource("text", (f"{url}/a.txt.gz",), document="line")
    assert read_all(packed) == read_all(here)
    assert texts(TextSource("parquet", (f"{url}/a.parquet",))) == ["one", "two"]
    with pytest.raises(DataError, match=r"gone\.txt does not exist"):
        plan(TextSource("text", (f"{url}/gone.txt",)))


def test_a_server_that_goes_away_in_the_middle_is_no_fault_of_the_file(server):
    for name in ("a.txt", "b.txt"):
        (server.folder / name).write_text("line\n" * 1000)
    files = (f"{server.url}/a.txt", f"{server.url}/b.txt")
    source = TextSource("text", files, document="line")
    planned = plan(source)
    server.stop()
    with pytest.raises(SystemFault, match=r"b\.txt: .* start again, finished work is kept"):
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
def bucket():
    with s3_bucket("bucket") as filesystem:
        yield filesystem


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
    with pytest.raises(DataError, match=r"cannot read s3://bucket/torn\.txt\.zst: .* cut off"):
        read_all(TextSource("text", ("s3://bucket/torn.txt.zst",), document="line"))
    with pytest.raises(DataError, match=r"s3://bucket/gone\.txt does not exist"):
        plan(TextSource("text", ("s3://bucket/gone.txt",)))
