"""Training from shards on a server, through a cache smaller than the corpus: the local losses."""

import json
import math
import threading

import job
import pytest
from file_server import FileServer
from s3_server import s3_bucket
from small import flags_of

from fitb.cluster.local import LocalRun

OUTAGE_S = 10.0
STEPS = 16  # of 64 rows: five windows of one shard


@pytest.fixture(scope="module")
def remote_flags(quick_flags):
    sizes = {"steps": STEPS, "global_batch": 64, "micro_batch": 16, "data.window_shards": 1}
    return quick_flags + flags_of(sizes)


@pytest.fixture(scope="module")
def at_home(remote_flags, tmp_path_factory):
    """A run that reads the folder itself."""
    folder = tmp_path_factory.mktemp("at_home") / "run"
    assert job.run(remote_flags, folder) == 0
    return folder


def cache_flags(shards, where, cache):
    """Flags for shards on a server, and a cache for two windows or one validation shard."""
    entries = json.loads((shards / "manifest.json").read_text())["shards"]
    sizes = sorted(entry["bytes"] for entry in entries)
    train = sorted(entry["bytes"] for entry in entries if entry["split"] == "train")
    room = max(sum(train[-2:]), sizes[-1])
    assert room < sum(sizes) / 2
    return flags_of({"data.shards": where, "data.cache_dir": cache, "data.cache_gb": room / 1e9})


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


def test_shards_on_an_s3_server_give_the_losses_of_local_ones(
    at_home, shards, remote_flags, tmp_path
):
    with s3_bucket("for-training") as filesystem:
        filesystem.put(f"{shards}/", "for-training/shards/", recursive=True)
        where = cache_flags(shards, "s3://for-training/shards", tmp_path / "cache")
        assert job.run([*remote_flags, *where], tmp_path / "run") == 0
    job.assert_same(at_home, tmp_path / "run")


def test_an_http_server_that_is_away_for_some_seconds_costs_time_and_nothing_else(
    at_home, shards, remote_flags, tmp_path
):
    run = tmp_path / "run"
    with FileServer(shards) as server:
        flags = [*remote_flags, *cache_flags(shards, server.url, tmp_path / "cache")]
        server.only = 3
        with LocalRun(job.command(flags, run), 2) as training:
            assert server.asked_for_more.wait(job.TIMEOUT_S)
            server.stop()
            server.only = math.inf
            threading.Event().wait(OUTAGE_S)
            assert 0 < len(job.steps(run)) < STEPS and training.running()
            server.start()
            assert training.wait(job.TIMEOUT_S) == 0
    job.assert_same(at_home, run)


def test_a_server_that_stays_away_stops_the_run_and_a_restart_goes_on_from_there(
    at_home, shards, remote_flags, tmp_path
):
    run = tmp_path / "run"
    with FileServer(shards) as server:
        flags = [*remote_flags, *cache_flags(shards, server.url, tmp_path / "cache")]
        flags += ["--data.cache_gb", "1", "--data.fetch_deadline_s", "1"]
        server.only = 3
        with LocalRun(job.command(flags, run), 2) as training:
            assert server.asked_for_more.wait(job.TIMEOUT_S)
            server.stop()
            assert training.wait(job.TIMEOUT_S) == 1
        server.only = math.inf
        assert job.events(run, "stop")[-1]["exit_code"] == 1
        server.start()
        assert job.run(flags, run) == 0
    assert job.events(run, "resume")[0]["step"] > 0
    job.assert_same(at_home, run)
