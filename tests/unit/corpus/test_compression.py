"""Compressed files are read whole, and what is wrong with one is told."""

import gzip
import io
import random

import pytest
import zstandard
from reading import COMPRESSORS, read_all, write

from fitb.base.errors import DataError
from fitb.corpus.files import opened
from fitb.corpus.sources import TextSource, plan


def read(path):
    with opened(str(path)) as file:
        return file.read()


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_files_are_read_whole_also_in_several_members(suffix, tmp_path):
    compress = COMPRESSORS[suffix]
    data = "\n\n".join(f"block {number} caf\u00e9" for number in range(3000)).encode() + b"\n\n"
    plain = TextSource("text", (write(tmp_path / "a.txt", data + data),))
    packed = write(tmp_path / f"a.txt.{suffix}", compress(data) + compress(data))
    source = TextSource("text", (packed,))
    assert len(plan(source, split_mb=0.001).splits) == 1
    assert read_all(source) == read_all(plain)


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("cut", [5, 0.5])
def test_a_torn_compressed_file_is_an_error_that_names_it(suffix, cut, tmp_path):
    data = random.Random(4).randbytes(300_000).hex().encode()
    whole = COMPRESSORS[suffix](b"\n".join(data[n : n + 80] for n in range(0, len(data), 80)))
    keep = len(whole) - cut if cut > 1 else int(len(whole) * cut)
    path = write(tmp_path / f"a.txt.{suffix}", whole[:keep])
    with pytest.raises(DataError, match=rf"cannot read .*a\.txt\.{suffix}: .*; "):
        read_all(TextSource("text", (path,), document="line"))


@pytest.mark.parametrize(("suffix", "tool"), [("gz", "gzip"), ("zst", "zstd")])
def test_what_follows_compressed_data_is_not_to_be_fetched_again(suffix, tool, tmp_path):
    """Line ends behind a gzip file are its author's: its own tool leaves them out."""
    packed = (gzip.compress if suffix == "gz" else zstandard.compress)(b"one line\n" * 500)
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(packed + b"\r\n\r\n\r\n")
    with pytest.raises(DataError, match=f"compressed data is followed by .*.*`{tool} -dc`"):
        read(path)
    path.write_bytes(b"no compressed text\n" * 9)
    with pytest.raises(DataError, match="remove the suffix"):
        read(path)
    if suffix == "gz":
        path.write_bytes(packed + bytes(100))  # padding
        assert read(path) == b"one line\n" * 500


@pytest.mark.parametrize("log", [20, 31])
def test_zstandard_with_a_long_window_is_read_and_a_torn_one_refused(tmp_path, log):
    parameters = zstandard.ZstdCompressionParameters(window_log=log)
    whole = io.BytesIO()
    for line in (b"a\n", b"b\n"):  # a frame each
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        with compressor.stream_writer(whole, closefd=False) as writer:
            writer.write(line)
    path = tmp_path / "a.txt.zst"
    path.write_bytes(whole.getvalue())
    assert read(path) == b"a\nb\n"
    path.write_bytes(whole.getvalue()[:-3])
    with pytest.raises(DataError, match="cut off"):
        read(path)
    path.write_bytes(whole.getvalue() + b"\r\n\r\n\r\n")
    with pytest.raises(DataError, match="compressed data is followed by .*.*`zstd -dc`"):
        read(path)
