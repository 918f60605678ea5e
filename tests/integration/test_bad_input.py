"""What `fitb prepare` does with bad input: an error that names it, or a skip that is counted."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import job
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fitb.base.fsio import read_json

TEXTS = [
    f"document number {n} speaks of shards and rows and of the reader {n * n}" for n in range(200)
]


def prepared(folder, source, file, *more):
    """Run the command on one file, with one worker."""
    words = ["--out", str(folder / "out"), "--source", source]
    words += ["--files", json.dumps([str(folder / file)]), "--vocab_size", "300", "--length", "32"]
    words += ["--validation_fraction", "0.1", "--workers", "1", *more]
    return job.fitb("prepare", *words)


def a_cut_parquet(path):
    pq.write_table(pa.table({"text": TEXTS}), path)
    path.write_bytes(path.read_bytes()[:-30])


def a_cut_gz(path):
    path.write_bytes(gzip.compress("\n".join(TEXTS * 50).encode(), mtime=0)[:-200])


@pytest.mark.parametrize(
    ("source", "file", "make", "words"),
    [
        ("text", "texts.txt.gz", a_cut_gz, ("texts.txt.gz", "fetch")),
        ("parquet", "texts.parquet", a_cut_parquet, ("texts.parquet", "fetch")),
        ("text", "empty.txt", Path.touch, ("empty.txt",)),
        ("text", "no*.txt", lambda path: None, ("no*.txt",)),
    ],
)
def test_input_that_cannot_be_read_is_named_and_nothing_is_left(
    tmp_path, source, file, make, words
):
    make(tmp_path / file)
    before = sorted(tmp_path.iterdir())
    done = prepared(tmp_path, source, file, "--document", "line")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, last
    assert sorted(tmp_path.iterdir()) == before


def test_a_line_of_a_gigabyte_is_skipped_in_bounded_memory(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + 10**9)  # a hole: NULs that take no disk
        file.seek(0, 2)
        file.write(b"\nthe last line\n")
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from fitb.cli import main\n"
        "code = main(sys.argv[1:])\n"
        # Not getrusage: its peak is inherited from the process that started this one.
        "status = Path('/proc/self/status').read_text()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", code, "prepare", "--out", str(tmp_path / "out")]
    command += ["--source", "text", "--files", json.dumps([str(path)]), "--document", "line"]
    command += ["--vocab_size", "300", "--length", "32", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "out" / "manifest.json")
    assert found["dropped"] == {"too_big": 1}
    assert found["statistics"]["documents"] == 201
    assert int(done.stderr.strip().splitlines()[-1]) < 400_000, "kilobytes"


def test_a_full_disk_is_named_and_the_work_goes_on_when_there_is_room(small_disk):
    texts = [f"{text} {number}" for number in range(60) for text in TEXTS]
    (small_disk / "texts.txt").write_text("\n".join(texts))
    flags = ("--document", "line", "--shard_mb", "0.1")
    done = prepared(small_disk, "text", "texts.txt", *flags)
    assert done.returncode == 4, done.stderr
    assert "no space left" in done.stderr and "Traceback" not in done.stderr
    assert not (small_disk / "out").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = prepared(small_disk, "text", "texts.txt", *flags)
    assert done.returncode == 0, done.stderr
    assert read_json(small_disk / "out" / "manifest.json")["statistics"]["documents"] == len(texts)
    assert sorted(path.name for path in small_disk.iterdir()) == ["out", "texts.txt"]
