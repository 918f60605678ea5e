"""Remote sets: the rows of the local one, through a cache that is small."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from caching import NUM_ROWS, SHARD_ROWS, bound, expected_rows, kept
from file_server import FileServer
from shard_files import flip, write_manifest

from fitb.base.errors import ConfigError, DataError, SystemFault
from fitb.shards.cache import CacheSettings
from fitb.shards.shard_set import ShardSet

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_rows_are_the_same_from_a_server_through_a_cache_smaller_than_the_corpus(
    protocol, local, settings, request
):
    where = request.getfixturevalue("bucket" if protocol == "s3" else "server")
    where = where if protocol == "s3" else where.url
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
from fitb.shards.cache import CacheSettings
from fitb.shards.shard_set import ShardSet
url, folder, max_gb, seed, times = sys.argv[1:]
shards = ShardSet.open(url, "train", CacheSettings(folder, float(max_gb), 30.0), max_mapped=2)
print("open", flush=True)
sys.stdin.readline()
draw = np.random.default_rng(int(seed))
for _ in range(int(times)):
    ids = [shards.read(np.array([row])).input_ids for row in draw.permutation(shards.num_rows)]
print(sum(int(part.sum()) for part in ids))
"""


def start_reader(server, settings, *, max_gb, seed=0, times=1):
    """Start a process that reads every row, some times, each in an order of its own."""
    words = [server.url, str(settings.folder), str(max_gb), str(seed), str(times)]
    command = [sys.executable, "-c", READER, *words]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout.readline() == "open\n"
    return process


def finish(process):
    """Let a reader read to its end; return the sum of the ids that it read."""
    out, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    return int(out)


def test_processes_of_a_node_download_each_shard_once(server, settings, local):
    readers = [start_reader(server, settings, max_gb=1.0, seed=seed) for seed in range(2)]
    with ThreadPoolExecutor() as pool:
        assert len(set(pool.map(finish, readers))) == 1
    names = [path.name for path in local.glob("train-0000?.arrow")]
    assert [server.requests[name] for name in names] == [1] * len(names)
    assert server.requests["tokenizer/tokenizer.json"] == 1


def test_a_cache_is_never_above_its_bound_whatever_its_processes_do(server, settings, local):
    readers = [
        start_reader(server, settings, max_gb=settings.max_gb, seed=seed, times=2)
        for seed in range(2)
    ]
    seen = []
    with ThreadPoolExecutor() as pool:
        sums = [pool.submit(finish, reader) for reader in readers]
        while not all(each.done() for each in sums):
            seen.append(sum(kept(settings).values()))
            time.sleep(0.001)
    expected = int(expected_rows(local, np.arange(NUM_ROWS)).sum())
    assert [each.result() for each in sums] == [expected] * 2
    assert 0 < max(seen) <= bound(local)
    assert sum(server.requests.values()) > 30  # so shards were removed and fetched again


def test_a_killed_fetcher_blocks_nobody_and_its_part_is_removed(server, settings, local):
    reader = start_reader(server, settings, max_gb=settings.max_gb)
    server.hold.clear()
    reader.stdin.write("\n")
    reader.stdin.flush()
    assert server.holding.wait(10)
    while not any(name.endswith(".part") for name in kept(settings)):
        time.sleep(0.01)
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    assert any(name.endswith(".part") for name in kept(settings))
    server.hold.set()
    (next(Path(settings.folder).rglob("tokenizer")).parent / ".tokenizer.7.part").mkdir()
    shards = ShardSet.open(server.url, "train", settings)
    asked = np.arange(NUM_ROWS)
    assert (shards.read(asked).input_ids == expected_rows(local, asked)).all()
    assert [name for name in kept(settings) if name.endswith(".part")] == [".tokenizer.7.part"]


def test_a_file_that_is_being_fetched_is_waited_for_or_passed_over(server, settings):
    shards, other = (ShardSet.open(server.url, "train", settings) for _ in range(2))
    server.hold.clear()
    fetch = threading.Thread(target=shards.fetch, args=([0],))
    fetch.start()
    assert server.holding.wait(10)
    assert not other.cache.fetch("train-00000.arrow", wait=False)
    server.hold.set()
    other.fetch([0])
    fetch.join(10)
    assert server.requests["train-00000.arrow"] == 1


def test_a_shard_that_leaves_the_cache_while_it_is_mapped_keeps_its_rows(server, settings, local):
    shards = ShardSet.open(server.url, "train", settings)
    ids = shards._mapped.columns(0)["input_ids"]
    before = ids.copy()
    shards.fetch(range(1, 10))
    assert "train-00000.arrow" not in kept(settings)
    assert (ids == before).all()
    assert (shards.read(np.arange(SHARD_ROWS)).input_ids == before).all()
    assert server.requests["train-00000.arrow"] == 1


def test_the_shard_unused_for_longest_leaves_first(server, settings):
    shards = ShardSet.open(server.url, "train", settings)
    for number in (0, 1, 2, 3, 0, 4, 5):
        shards.fetch([number])
    assert set(kept(settings)) == {f"train-0000{number}.arrow" for number in (3, 0, 4, 5)}


def test_a_new_version_of_a_set_shares_no_file_with_the_old(local, settings, tmp_path):
    copy = shutil.copytree(local, tmp_path / "copy")
    with FileServer(copy) as server:
        old = ShardSet.open(server.url, "train", settings)
        manifest = json.loads((copy / "manifest.json").read_text())
        del manifest["shards"][0]["documents_file"], manifest["shards"][0]["documents"]
        write_manifest(copy, manifest)
        new = ShardSet.open(server.url, "train", settings)
    assert old.tokenizer_folder != new.tokenizer_folder


def test_a_cached_shard_that_changed_after_it_was_checked_is_fetched_again_at_the_next_start(
    server, local, settings
):
    one, other = np.array([0]), np.array([SHARD_ROWS])
    shards = ShardSet.open(server.url, "train", settings, max_mapped=1)
    shards.read(one)
    shards.read(other)  # which takes the place of the first in memory
    (path,) = Path(settings.folder).glob("**/train-00000.arrow")
    flip(path, -30)
    with pytest.raises(SystemFault, match=r"train-00000\.arrow .*start again"):
        shards.read(one)
    again = ShardSet.open(server.url, "train", settings)
    assert (again.read(one).input_ids == expected_rows(local, one)).all()


@pytest.mark.parametrize("name", ["set.json", "tokenizer", "a.lock", "a.part"])
def test_a_manifest_names_no_file_that_the_cache_needs_itself(local, settings, tmp_path, name):
    manifest = json.loads((local / "manifest.json").read_text())
    manifest["shards"][3]["file"] = name
    write_manifest(tmp_path, manifest)
    with FileServer(tmp_path) as server, pytest.raises(DataError, match=name):
        ShardSet.open(server.url, "train", settings)


def test_a_shard_above_the_bound_is_an_error_of_the_configuration(server, settings):
    with pytest.raises(ConfigError, match=r"data\.cache_gb=1e-06 is smaller than a file"):
        ShardSet.open(server.url, "train", CacheSettings(settings.folder, 1e-6))


def test_a_full_disk_is_named_and_not_tried_again(server, settings, monkeypatch):
    shards = ShardSet.open(server.url, "train", settings)
    tries = []

    def full(*_, **__):
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.cache.remote._fs, "get_file", full)
    with pytest.raises(SystemFault, match=r"no space left while writing .*\.part"):
        shards.read(np.array([0]))
    assert len(tries) == 1
    assert kept(settings) == {}


def test_a_protocol_that_is_not_known_or_lacks_its_library_is_an_error_of_the_configuration(
    settings, monkeypatch
):
    with pytest.raises(ConfigError, match=r"unknown protocol 'htps' \(nearest: https?\)"):
        ShardSet.open("htps://host/set", "train", settings)
    for module, url in (("aiohttp", "https://host/set"), ("s3fs", "s3://bucket/set")):
        monkeypatch.setitem(sys.modules, module, None)
        known = sys.modules["fsspec.registry"].__dict__["_registry"]  # by tests before this one
        monkeypatch.delitem(known, "s3", raising=False)
        with pytest.raises(ConfigError, match=r"pip install 'fitb\[remote\]'"):
            ShardSet.open(url, "train", settings)


def test_the_cache_lies_where_the_scheduler_or_the_user_says(tmp_path, monkeypatch):
    own = f"fitb-shard-cache-{os.getuid()}"
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "job"))
    assert CacheSettings("here").folder == "here"
    assert CacheSettings(str(tmp_path / "named")).home() == tmp_path / "named" / own
    assert CacheSettings().home() == tmp_path / "job" / own
    monkeypatch.delenv("SLURM_TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert CacheSettings().home() == tmp_path / own
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make .*; set data\.cache_dir"):
        CacheSettings(str(tmp_path / "file" / "below")).home()


def test_a_wait_for_a_server_ends_when_it_is_cancelled(server, settings):
    shards = ShardSet.open(server.url, "train", settings)
    server.stop()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(shards.fetch, [0])
        shards.cache.remote.cancelled.set()
        with pytest.raises(SystemFault, match="was cancelled"):
            waiting.result(5)
