"""Remote sets, through servers that fail, refuse, send damaged files or want a password."""

import logging
import re
import threading
import time

import fsspec
import numpy as np
import pytest
from caching import NUM_ROWS, SHARD_ROWS, expected_rows, kept

from fitb.base.errors import DataError, SystemFault
from fitb.base.fsio import sha256_file
from fitb.shards import remote as fetching
from fitb.shards.cache import CacheSettings
from fitb.shards.shard_set import ShardSet

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize(("fault", "times"), [("corrupt", 1), ("cut", 3)])
def test_a_file_that_comes_damaged_or_cut_off_is_fetched_again(
    server, settings, local, fault, times
):
    getattr(server, fault)["train-00001.arrow"] = times
    rows = ShardSet.open(server.url, "train", settings).read(np.arange(NUM_ROWS)).input_ids
    assert (rows == expected_rows(local, np.arange(NUM_ROWS))).all()
    assert server.requests["train-00001.arrow"] == times + 1


def test_a_file_that_comes_damaged_twice_is_named_with_both_sums(server, settings, local):
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


def test_a_server_that_dies_in_the_middle_of_a_file_and_comes_back_costs_only_time(
    server, settings, local, caplog
):
    shards = ShardSet.open(server.url, "train", settings)
    server.hold.clear()
    rows = []
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


def test_a_server_that_stays_away_is_a_fault_of_the_machine(server, settings):
    shards = ShardSet.open(server.url, "train", CacheSettings(settings.folder, 1.0, 0.3))
    server.stop()
    with pytest.raises(SystemFault, match=r"no server sent http://127.*train-00000\.arrow within"):
        shards.read(np.array([0]))
    with pytest.raises(SystemFault, match=r"manifest\.json within 0\.3 s .*Client"):
        ShardSet.open(server.url, "train", CacheSettings(settings.folder, 1.0, 0.3))


@pytest.mark.parametrize(
    ("status", "message"), [(404, "is missing; copy the set"), (403, "is refused: .*credentials")]
)
def test_a_server_that_refuses_is_believed_after_a_few_tries(server, settings, status, message):
    shards = ShardSet.open(server.url, "train", settings)
    server.answers["train-00002.arrow"] = status
    with pytest.raises(DataError, match=rf"train-00002\.arrow {message}"):
        shards.read(np.array([2 * SHARD_ROWS]))
    assert server.requests["train-00002.arrow"] == fetching.REFUSALS


def test_an_s3_server_without_the_file_is_believed(bucket, settings):
    shards = ShardSet.open(bucket, "train", settings)
    fsspec.filesystem("s3", skip_instance_cache=True).rm(f"{bucket}/train-00002.arrow")
    with pytest.raises(DataError, match=r"s3://.*/train-00002\.arrow is missing"):
        shards.read(np.array([2 * SHARD_ROWS]))
    with pytest.raises(DataError, match=r"s3://.*/none is not a shard set"):
        ShardSet.open(f"{bucket}/none", "train", settings)


def test_passwords_and_signatures_reach_the_server_and_no_message(server, settings, caplog):
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


def test_a_tokenizer_that_is_another_is_refused(server, settings):
    server.corrupt["tokenizer/tokenizer.json"] = 1
    ShardSet.open(server.url, "train", settings)
    assert server.requests["tokenizer/tokenizer.json"] == 2
    server.corrupt["tokenizer/tokenizer.json"] = 9
    elsewhere = CacheSettings(f"{settings.folder}-other", settings.max_gb)
    with pytest.raises(DataError, match="is not the tokenizer of these shards: expected finger"):
        ShardSet.open(server.url, "train", elsewhere)
