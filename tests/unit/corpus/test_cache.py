"""Remote sets: the rows of the local one, through servers that fail and a cache that is small."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from file_server import FileServer
from moto.server import ThreadedMotoServer
from test_shards import random_columns, write_set

from fitb.corpus import remote as fetching
from fitb.corpus.cache import CacheSettings
from fitb.corpus.shards import ShardSet, write_documents
from fitb.corpus.tokenizer import tokenizer_fingerprint
from fitb.errors import ConfigError, DataError, SystemFault
from fitb.fsio import sha256_file

NUM_ROWS, SHARD_ROWS = 60, 6
ROOM = 4.5  # shards that the small cache holds


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(fetching, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(fetching, "LONGEST_WAIT_S", 0.1)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten shards of about the same size, documents beside the first, and a tokenizer."""
    folder = tmp_path_factory.mktemp("remote") / "set"
    (folder / "tokenizer").mkdir(parents=True)
    write_set(folder, random_columns(NUM_ROWS, 32), SHARD_ROWS)
    (folder / "tokenizer" / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"] = {
        "fingerprint": tokenizer_fingerprint(folder / "tokenizer"),
        "files": ["tokenizer.json", "tokenizer_config.json"],
    }
    documents = folder / "train-00000.documents.arrow"
    one = np.ones(3, np.int32)
    size = write_documents(documents, one, one.astype(np.int64), one, np.ones((3, 16), np.uint8))
    manifest["shards"][0] |= {
        "documents_file": documents.name,
        "documents_bytes": size,
        "documents_sha256": sha256_file(documents),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture()
def server(local: Path) -> Iterator[FileServer]:
    with FileServer(local) as serving:
        yield serving


@pytest.fixture()
def settings(local: Path, tmp_path: Path) -> CacheSettings:
    return CacheSettings(str(tmp_path / "cache"), max_gb=bound(local) / 1e9, deadline_s=30.0)


@pytest.fixture()
def bucket(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a copy of the set on an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    name = f"corpora-{tmp_path.name.replace('_', '-')[-20:]}"  # all servers hold the same buckets
    filesystem.mkdir(name)
    filesystem.put(f"{local}/", f"{name}/set/", recursive=True)
    yield f"s3://{name}/set"
    server.stop()


def bound(local: Path) -> int:
    return int(ROOM * max(path.stat().st_size for path in local.glob("train-0000?.arrow")))


def kept(settings: CacheSettings) -> dict[str, int]:
    """Bytes of every whole file and part in a cache now."""
    found = {}
    for path in Path(str(settings.folder)).glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            if path.suffix in (".arrow", ".part"):
                found[path.name] = path.stat().st_size
    return found


def expected_rows(local: Path, asked: np.ndarray) -> np.ndarray:
    return ShardSet.open(local, "train").read(asked).input_ids


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_rows_are_the_same_from_a_server_through_a_cache_smaller_than_the_corpus(
    protocol: str, local: Path, settings: CacheSettings, request: pytest.FixtureRequest
) -> None:
    where = (
        request.getfixturevalue("server").url
        if protocol == "http"
        else request.getfixturevalue("bucket")
    )
    shards = ShardSet.open(where, "train", settings, max_mapped=2)
    there = ShardSet.open(local, "train")
    assert (shards.fingerprint, shards.shard_rows) == (there.fingerprint, there.shard_rows)
    draw = np.random.default_rng(3)
    for asked in [np.arange(NUM_ROWS), *(draw.integers(0, NUM_ROWS, 9) for _ in range(5))]:
        rows, wanted = shards.read(asked), there.read(asked)
        assert (rows.input_ids == wanted.input_ids).all()
        assert (rows.word_starts == wanted.word_starts).all()
        assert sum(kept(settings).values()) <= bound(local)
    assert shards.documents(0).equals(there.documents(0))
    copy = pickle.loads(pickle.dumps(shards))
    assert copy == shards
    assert (copy.read(np.array([7])).input_ids == expected_rows(local, np.array([7]))).all()
    fetched = (shards.tokenizer_folder / "tokenizer.json").read_bytes()
    assert fetched == (local / "tokenizer" / "tokenizer.json").read_bytes()


READER = """
import sys, time
import numpy as np
from fitb.corpus.cache import CacheSettings
from fitb.corpus.shards import ShardSet
url, folder, max_gb, seed, times = sys.argv[1:]
shards = ShardSet.open(url, "train", CacheSettings(folder, float(max_gb), 30.0), max_mapped=2)
print("open", flush=True)
sys.stdin.readline()
draw = np.random.default_rng(int(seed))
for _ in range(int(times)):
    ids = [shards.read(np.array([row])).input_ids for row in draw.permutation(shards.num_rows)]
print(sum(int(part.sum()) for part in ids))
"""


def start_reader(
    server: FileServer, settings: CacheSettings, *, max_gb: float, seed: int = 0, times: int = 1
) -> subprocess.Popen[str]:
    """Start a process that reads every row, some times, each in an order of its own."""
    words = [server.url, str(settings.folder), str(max_gb), str(seed), str(times)]
    process = subprocess.Popen(
        [sys.executable, "-c", READER, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "open\n"
    return process


def finish(process: subprocess.Popen[str]) -> int:
    """Let a reader read to its end; return the sum of the ids that it read."""
    out, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    return int(out)


def test_processes_of_a_node_download_each_shard_once(
    server: FileServer, settings: CacheSettings, local: Path
) -> None:
    readers = [start_reader(server, settings, max_gb=1.0, seed=seed) for seed in range(2)]
    threads = [threading.Thread(target=reader.communicate, args=("\n",)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [reader.returncode for reader in readers] == [0, 0]
    names = [path.name for path in local.glob("train-0000?.arrow")]
    assert [server.requests[name] for name in names] == [1] * len(names)
    assert server.requests["tokenizer/tokenizer.json"] == 1


def test_a_cache_is_never_above_its_bound_whatever_its_processes_do(
    server: FileServer, settings: CacheSettings, local: Path
) -> None:
    limit = settings.max_gb
    readers = [
        start_reader(server, settings, max_gb=limit, seed=seed, times=2) for seed in range(2)
    ]
    sums: list[int] = []
    threads = [
        threading.Thread(target=lambda one=reader: sums.append(finish(one))) for reader in readers
    ]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads):
        seen.append(sum(kept(settings).values()))
        time.sleep(0.001)
    assert sums == [int(expected_rows(local, np.arange(NUM_ROWS)).sum())] * 2
    assert 0 < max(seen) <= bound(local)
    assert sum(server.requests.values()) > 30  # so shards were removed and fetched again


def test_a_file_that_comes_damaged_is_fetched_again(
    server: FileServer, settings: CacheSettings, local: Path
) -> None:
    server.corrupt["train-00001.arrow"] = 1
    rows = ShardSet.open(server.url, "train", settings).read(np.arange(NUM_ROWS)).input_ids
    assert (rows == expected_rows(local, np.arange(NUM_ROWS))).all()
    assert server.requests["train-00001.arrow"] == 2


def test_a_file_that_comes_damaged_twice_is_named_with_both_sums(
    server: FileServer, settings: CacheSettings, local: Path
) -> None:
    name = "train-00001.arrow"
    server.corrupt[name] = 9
    shards = ShardSet.open(server.url, "train", settings)
    with pytest.raises(DataError) as caught:
        shards.read(np.array([SHARD_ROWS]))
    expected = sha256_file(local / name)
    found = re.search(r"found ([0-9a-f]{64})", str(caught.value))
    assert f"{server.url}/{name} is damaged: expected sha256 {expected}" in str(caught.value)
    assert found and found[1] != expected
    assert server.requests[name] == 2
    assert kept(settings) == {}


def test_a_damaged_file_in_the_cache_is_fetched_again(
    server: FileServer, settings: CacheSettings, local: Path
) -> None:
    ShardSet.open(server.url, "train", settings).read(np.array([0]))
    (path,) = Path(str(settings.folder)).glob("*/train-00000.arrow")
    damage(path)
    rows = ShardSet.open(server.url, "train", settings).read(np.array([0])).input_ids
    assert (rows == expected_rows(local, np.array([0]))).all()
    assert server.requests["train-00000.arrow"] == 2


def test_a_server_that_dies_in_the_middle_of_a_file_and_comes_back_costs_only_time(
    server: FileServer,
    settings: CacheSettings,
    local: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shards = ShardSet.open(server.url, "train", settings)
    server.hold.clear()
    rows: list[np.ndarray] = []
    reading = threading.Thread(target=lambda: rows.append(shards.read(np.array([9])).input_ids))
    reading.start()
    assert server.holding.wait(10)
    server.stop()
    server.hold.set()
    while not [record for record in caplog.records if "Connect" in record.message]:
        time.sleep(0.01)
    assert reading.is_alive()
    server.start()
    reading.join(30)
    assert (rows[0] == expected_rows(local, np.array([9]))).all()
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_an_answer_that_ends_too_early_is_asked_for_again(
    server: FileServer, settings: CacheSettings, local: Path
) -> None:
    server.cut["train-00001.arrow"] = 3
    rows = ShardSet.open(server.url, "train", settings).read(np.array([9])).input_ids
    assert (rows == expected_rows(local, np.array([9]))).all()
    assert server.requests["train-00001.arrow"] == 4


def test_a_server_that_stays_away_is_a_fault_of_the_machine(
    server: FileServer, settings: CacheSettings
) -> None:
    shards = ShardSet.open(server.url, "train", CacheSettings(settings.folder, 1.0, 0.3))
    server.stop()
    with pytest.raises(SystemFault, match=r"no server gave http://127.*train-00000\.arrow within"):
        shards.read(np.array([0]))
    with pytest.raises(SystemFault, match=r"manifest\.json within 0\.3 s, at last Client"):
        ShardSet.open(server.url, "train", CacheSettings(settings.folder, 1.0, 0.3))


@pytest.mark.parametrize(
    ("status", "message"), [(404, "is missing; copy the set"), (403, "is refused: .*credentials")]
)
def test_a_server_that_refuses_is_believed_after_a_few_tries(
    server: FileServer, settings: CacheSettings, status: int, message: str
) -> None:
    shards = ShardSet.open(server.url, "train", settings)
    server.answers["train-00002.arrow"] = status
    with pytest.raises(DataError, match=rf"train-00002\.arrow {message}"):
        shards.read(np.array([2 * SHARD_ROWS]))
    assert server.requests["train-00002.arrow"] == fetching.REFUSALS


def test_an_s3_server_without_the_file_is_believed(bucket: str, settings: CacheSettings) -> None:
    shards = ShardSet.open(bucket, "train", settings)
    fsspec.filesystem("s3", skip_instance_cache=True).rm(f"{bucket}/train-00002.arrow")
    with pytest.raises(DataError, match=r"s3://.*/train-00002\.arrow is missing"):
        shards.read(np.array([2 * SHARD_ROWS]))
    with pytest.raises(DataError, match=r"s3://.*/none is not a shard set"):
        ShardSet.open(f"{bucket}/none", "train", settings)


def test_a_url_that_is_no_shard_set_is_named(server: FileServer, settings: CacheSettings) -> None:
    with pytest.raises(DataError, match=r"/elsewhere is not a shard set: it has no manifest\.json"):
        ShardSet.open(f"{server.url}/elsewhere", "train", settings)


def test_a_killed_fetcher_blocks_nobody_and_its_part_is_removed(
    server: FileServer, settings: CacheSettings, local: Path
) -> None:
    reader = start_reader(server, settings, max_gb=settings.max_gb)
    server.hold.clear()
    assert reader.stdin
    reader.stdin.write("\n")
    reader.stdin.flush()
    assert server.holding.wait(10)
    while not any(name.endswith(".part") for name in kept(settings)):
        time.sleep(0.01)
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    assert any(name.endswith(".part") for name in kept(settings))
    server.hold.set()
    (next(Path(str(settings.folder)).glob("*/tokenizer")).parent / ".tokenizer.7.part").mkdir()
    shards = ShardSet.open(server.url, "train", settings)
    asked = np.arange(NUM_ROWS)
    assert (shards.read(asked).input_ids == expected_rows(local, asked)).all()
    assert [name for name in kept(settings) if name.endswith(".part")] == [".tokenizer.7.part"]


def test_a_file_that_is_being_fetched_is_waited_for_or_passed_over(
    server: FileServer, settings: CacheSettings
) -> None:
    shards, other = (ShardSet.open(server.url, "train", settings) for _ in range(2))
    server.hold.clear()
    fetch = threading.Thread(target=lambda: shards.fetch([0]))
    fetch.start()
    assert server.holding.wait(10)
    assert other.cache and not other.cache.fetch("train-00000.arrow", wait=False)
    server.hold.set()
    other.fetch([0])
    fetch.join(10)
    assert server.requests["train-00000.arrow"] == 1


def test_a_shard_that_leaves_the_cache_while_it_is_mapped_keeps_its_rows(
    server: FileServer, settings: CacheSettings, local: Path
) -> None:
    shards = ShardSet.open(server.url, "train", settings)
    ids = shards._mapped.columns(0)["input_ids"]
    before = ids.copy()
    shards.fetch(range(1, 10))
    assert "train-00000.arrow" not in kept(settings)
    assert (ids == before).all()
    assert (shards.read(np.arange(SHARD_ROWS)).input_ids == before).all()
    assert server.requests["train-00000.arrow"] == 1


def test_the_shard_unused_for_longest_leaves_first(
    server: FileServer, settings: CacheSettings
) -> None:
    shards = ShardSet.open(server.url, "train", settings)
    for number in (0, 1, 2, 3, 0, 4, 5):
        shards.fetch([number])
    assert set(kept(settings)) == {f"train-0000{number}.arrow" for number in (3, 0, 4, 5)}


def test_a_new_version_of_a_set_shares_no_file_with_the_old(
    local: Path, settings: CacheSettings, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(local, tmp_path / "copy")
    with FileServer(copy) as server:
        old = ShardSet.open(server.url, "train", settings)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "other"}))
        new = ShardSet.open(server.url, "train", settings)
    assert old.tokenizer_folder != new.tokenizer_folder


def test_passwords_and_signatures_reach_the_server_and_no_message(
    server: FileServer, settings: CacheSettings, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.url.replace("//", "//user:hush@") + "?sig=quiet"
    shards = ShardSet.open(url, "train", settings)
    shards.read(np.array([0]))
    assert set(server.seen[::2]) == {"sig=quiet"}
    assert all(header.startswith("Basic ") for header in server.seen[1::2])
    server.answers["train-00002.arrow"] = 404
    server.corrupt["train-00001.arrow"] = 9
    messages = [repr(shards)]
    for row in (SHARD_ROWS, 2 * SHARD_ROWS):
        with pytest.raises(DataError) as refused:
            shards.read(np.array([row]))
        messages.append(str(refused.value))
    server.stop()
    with pytest.raises(SystemFault) as away:
        ShardSet.open(url, "train", CacheSettings(settings.folder, 1.0, 0.1))
    messages += [str(away.value), *(record.message for record in caplog.records)]
    assert len(messages) > 6
    assert not [text for text in messages if "hush" in text or "quiet" in text]


def test_a_tokenizer_that_is_another_is_refused(
    server: FileServer, settings: CacheSettings
) -> None:
    server.corrupt["tokenizer/tokenizer.json"] = 1
    ShardSet.open(server.url, "train", settings)
    assert server.requests["tokenizer/tokenizer.json"] == 2
    server.corrupt["tokenizer/tokenizer.json"] = 9
    elsewhere = CacheSettings(f"{settings.folder}-other", settings.max_gb)
    with pytest.raises(DataError, match="is not the tokenizer of these shards: expected finger"):
        ShardSet.open(server.url, "train", elsewhere)


@pytest.mark.parametrize("name", ["../train-00000.arrow", "a/b", ".."])
def test_a_manifest_names_no_file_outside_its_folder(
    local: Path, settings: CacheSettings, tmp_path: Path, name: str
) -> None:
    manifest = json.loads((local / "manifest.json").read_text())
    manifest["shards"][3]["file"] = name
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with FileServer(tmp_path) as server, pytest.raises(DataError, match="a name without folders"):
        ShardSet.open(server.url, "train", settings)


def test_a_shard_above_the_bound_is_an_error_of_the_configuration(
    server: FileServer, settings: CacheSettings
) -> None:
    with pytest.raises(ConfigError, match=r"data\.cache_gb=1e-06 does not hold a file of .* GB"):
        ShardSet.open(server.url, "train", CacheSettings(settings.folder, 1e-6))


def test_a_full_disk_is_named_and_not_tried_again(
    server: FileServer, settings: CacheSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(server.url, "train", settings)
    tries = []

    def full(*_: object, **__: object) -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    assert shards.cache
    monkeypatch.setattr(shards.cache.remote._fs, "get_file", full)
    with pytest.raises(SystemFault, match=r"no space left while writing .*\.part"):
        shards.read(np.array([0]))
    assert len(tries) == 1
    assert kept(settings) == {}


def test_a_protocol_that_is_not_known_or_lacks_its_library_is_an_error_of_the_configuration(
    settings: CacheSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"unknown protocol 'htps' \(nearest: https?\)"):
        ShardSet.open("htps://host/set", "train", settings)
    for module, url in (("aiohttp", "https://host/set"), ("s3fs", "s3://bucket/set")):
        monkeypatch.setitem(sys.modules, module, None)
        known = sys.modules["fsspec.registry"].__dict__["_registry"]  # by tests before this one
        monkeypatch.delitem(known, "s3", raising=False)
        with pytest.raises(ConfigError, match=r"pip install 'fitb\[remote\]'"):
            ShardSet.open(url, "train", settings)


def test_the_cache_lies_where_the_scheduler_or_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "job"))
    assert CacheSettings("here").folder == "here"
    assert CacheSettings(str(tmp_path / "named")).home() == tmp_path / "named"
    assert CacheSettings().home() == tmp_path / "job" / "fitb-cache"
    monkeypatch.delenv("SLURM_TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = CacheSettings().home()
    assert home == tmp_path / f"fitb-cache-{os.getuid()}"
    assert home.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make cache_dir=.*; set data\.cache_dir"):
        CacheSettings(str(tmp_path / "file" / "below")).home()


@pytest.mark.parametrize("wait", [lambda shards: shards.fetch([0])], ids=["fetch"])
def test_a_wait_for_a_server_ends_when_it_is_cancelled(
    server: FileServer, settings: CacheSettings, wait: Callable[[ShardSet], None]
) -> None:
    shards = ShardSet.open(server.url, "train", settings)
    server.stop()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            wait(shards)
        except SystemFault as error:
            errors.append(error)

    waiting = threading.Thread(target=work)
    waiting.start()
    assert shards.cache
    shards.cache.remote.cancelled.set()
    waiting.join(5)
    assert "was given up" in str(errors[0])
