"""Checkpoints that were cut, flipped, emptied, removed, or never finished."""

import errno
import json
import os
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fitb.base.errors import CheckpointError, SystemFault
from fitb.base.world import World
from fitb.rundir.checkpoints import read_file
from fitb.rundir.names import MANIFEST
from fitb.training import checkpoint
from fitb.training.checkpoint import load, read, save

ALONE = World(0, 1, 0)


def tensors(step, size=4):
    for name in ("student.weight", "student.bias", "projections.0.weight"):
        for kind in ("param", "exp_avg", "exp_avg_sq"):
            yield f"{kind}/{name}", torch.arange(float(size)).reshape(2, -1).T + step


def commit(root, step, keep_last=10, keep_step=None, **details):
    fence = root / ".0001"
    if not fence.is_dir():
        fence.mkdir()
    folder, _ = save(
        root,
        tensors(step),
        {"step": step, "rows_consumed": 8 * step, **details},
        fence=fence,
        world=ALONE,
        keep_last=keep_last,
        keep_step=keep_step,
    )
    return folder


@pytest.fixture
def root(tmp_path):
    """Two checkpoints, of steps 1 and 2."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    commit(folder, 1)
    commit(folder, 2)
    return folder


def state_of(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def chosen(root):
    """The folder of the checkpoint that a run goes on from; None where it begins."""
    found = load(root, ALONE)
    return found and found.path


def names(root):
    """What lies there, fences of attempts apart."""
    return sorted(name for name in os.listdir(root) if not re.fullmatch(r"\.\d{4}", name))


def assert_same(loaded, step):
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {
        name: tensor.dtype for name, tensor in tensors(step)
    }
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors(step))


def test_what_was_saved_comes_back_to_the_bit(root):
    found = load(root, ALONE)
    assert found.path == root / "step-0000002"
    assert (root / "latest").read_text() == "step-0000002\n"
    manifest = found.manifest
    assert (manifest["step"], manifest["rows_consumed"], manifest["world_size"]) == (2, 16, 1)
    assert_same(found.tensors, 2)
    folder = commit(root, 3, best_loss=float("inf"), best_step=None)  # before a first validation
    assert read(folder).manifest["best_loss"] == float("inf")


def test_a_fresh_run_has_no_checkpoint(tmp_path):
    assert chosen(tmp_path / "none") is None
    (tmp_path / "step-0000003.tmp").mkdir()  # unfinished
    assert chosen(tmp_path) is None


def test_the_newest_is_chosen_by_its_number_and_not_by_its_name(tmp_path):
    for step in (9_999_999, 10_000_000, 3):
        commit(tmp_path, step)
    assert read(chosen(tmp_path)).manifest["step"] == 10_000_000


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGE = [truncate, flip, empty, lengthen, Path.unlink]


@pytest.mark.parametrize("file", ["state", "manifest"])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_chosen(root, damage, file):
    newest = root / "step-0000002"
    damage(state_of(newest) if file == "state" else newest / MANIFEST)
    assert chosen(root) == root / "step-0000001"
    assert names(root) == ["latest", "step-0000001", "step-0000002.bad"]
    assert chosen(root) == root / "step-0000001"
    commit(root, 2)
    assert chosen(root) == root / "step-0000002"


def test_no_flipped_bit_of_a_manifest_changes_what_is_believed(root):
    path = root / "step-0000002" / MANIFEST
    data, believed = path.read_bytes(), []
    manifest = read(path.parent).manifest
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        try:
            if read(path.parent).manifest != manifest:
                believed.append(bytes(flipped[max(0, place - 10) : place + 10]))
        except CheckpointError:
            pass
    assert not believed


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"format": 1, "files": 3}'])
def test_a_manifest_of_another_shape_is_a_bad_checkpoint(root, text):
    (root / "step-0000002" / MANIFEST).write_text(text)
    assert chosen(root) == root / "step-0000001"


def test_a_checkpoint_of_a_newer_fitb_is_left_where_it_is(root):
    """It is good; only this program is old."""
    path = root / "step-0000002" / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(CheckpointError, match="format 2"):
        chosen(root)
    assert (root / "step-0000002").exists()


def test_when_none_verifies_the_run_stops_now_and_at_every_later_start(root):
    for folder in ("step-0000001", "step-0000002"):
        flip(state_of(root / folder))
    for _ in range(3):
        with pytest.raises(CheckpointError, match="none verifies"):
            chosen(root)
    assert names(root) == ["latest", "step-0000001.bad", "step-0000002.bad"]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def purged(run):
    """A run whose checkpoints are gone, with `latest` and all."""
    (run / "checkpoints").mkdir(exist_ok=True)
    return run / "checkpoints"


ATTEMPTS = [{"event": "attempt", "attempt": 1}, {"event": "attempt", "attempt": 2}]
SAVED = [
    [ATTEMPTS[0], {"event": "save", "step": 12}, ATTEMPTS[1]],
    [{"event": "resume", "step": 12}, ATTEMPTS[1]],
    [*ATTEMPTS, {"event": "requeue", "step": 12, "exit_code": 1}],
    [{"event": "stop", "step": 12, "exit_code": 85}, {"event": "stop", "step": None}],
]


@pytest.mark.parametrize("events", SAVED)
def test_a_run_that_has_saved_and_holds_no_checkpoint_is_not_begun_anew(tmp_path, events):
    write_lines(tmp_path / "events.jsonl", events)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="saved step 12.*Restore.*mv") as caught:
            load(purged(tmp_path), ALONE)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("left", ["metrics.jsonl", "export"])
def test_a_run_that_has_trained_and_lost_its_events_is_not_begun_anew(tmp_path, left):
    write_lines(tmp_path / "events.jsonl", [ATTEMPTS[1]])
    if left == "export":
        (tmp_path / left).mkdir()
    else:
        write_lines(tmp_path / left, [{"train/step": 3}])
    with pytest.raises(CheckpointError, match=f"{left}.*does not tell"):
        load(purged(tmp_path), ALONE)


def test_a_run_that_crashed_before_its_first_save_begins_again(tmp_path):
    stop = {"event": "stop", "step": None, "exit_code": 1}
    again = {"event": "requeue", "step": 0, "exit_code": 1}
    write_lines(tmp_path / "events.jsonl", [ATTEMPTS[0], stop, again, ATTEMPTS[1]])
    write_lines(tmp_path / "metrics.jsonl", [{"train/step": 3}])
    assert load(purged(tmp_path), ALONE) is None


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (b'{"exit_code": 0, "step": 9}', "saved step 9"),
        (bytes(20), r"done\.json cannot be read"),
        (b"[0]", r"done\.json cannot be read"),
    ],
)
def test_a_run_that_came_to_an_end_or_may_have_is_not_begun_anew(tmp_path, done, said):
    (tmp_path / "done.json").write_bytes(done)
    with pytest.raises(CheckpointError, match=said):
        load(purged(tmp_path), ALONE)


def test_the_tensors_are_those_of_the_bytes_that_were_hashed(root, monkeypatch):
    """A file that changes after it was read changes nothing."""
    reads = []

    def reading(file, expected):
        data = read_file(file, expected)
        reads.append(file)
        file.write_bytes(b"torn")
        return data

    monkeypatch.setattr(checkpoint, "read_file", reading)
    found = load(root, ALONE)
    assert reads == [state_of(root / "step-0000002")]
    assert_same(found.tensors, 2)


def test_a_second_bad_checkpoint_of_a_step_gets_its_own_name(root):
    for _ in range(3):
        flip(state_of(root / "step-0000002"))
        chosen(root)
        commit(root, 2)
    bad = [name for name in names(root) if ".bad" in name]
    assert len(bad) == 3


def test_an_unfinished_checkpoint_is_ignored_and_goes_with_the_next_save(root):
    shutil.copytree(root / "step-0000002", root / "step-0000003.tmp")
    assert chosen(root) == root / "step-0000002"
    assert (root / "step-0000003.tmp").exists()
    commit(root, 3)
    assert not list(root.glob("*.tmp"))


@pytest.mark.parametrize(
    ("keep_last", "best", "left"), [(2, None, "56"), (3, None, "456"), (2, 2, "256")]
)
def test_the_newest_are_kept_and_the_best_and_older_ones_go(tmp_path, keep_last, best, left):
    for step in range(1, 7):
        commit(tmp_path, step, keep_last=keep_last, keep_step=best and min(step, best))
        assert chosen(tmp_path) == tmp_path / f"step-{step:07d}"
    assert names(tmp_path) == ["latest", *(f"step-{int(step):07d}" for step in left)]


def test_saving_a_step_again_replaces_it(root):
    commit(root, 2, note="again")
    assert read(root / "step-0000002").manifest["note"] == "again"
    assert names(root) == ["latest", "step-0000001", "step-0000002"]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_nothing_half_done(root, monkeypatch, call):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(call, refuse)
    with pytest.raises(SystemFault, match="no space left while writing .*step-0000003"):
        commit(root, 3)
    monkeypatch.undo()
    assert names(root) == ["latest", "step-0000001", "step-0000002"]
    assert chosen(root) == root / "step-0000002"


def test_a_disk_that_is_really_full_leaves_the_earlier_checkpoint(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a filesystem of 256 kB needs root")
    try:
        commit(folder, 1)
        with pytest.raises(SystemFault, match="no space left"):
            save(
                folder,
                tensors(2, size=20_000),
                {"step": 2},
                fence=folder / ".0001",
                world=ALONE,
                keep_last=2,
            )
        assert names(folder) == ["latest", "step-0000001"]
        assert chosen(folder) == folder / "step-0000001"
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_any_moment_leaves_a_checkpoint_that_verifies(
    tmp_path, monkeypatch, call, moment
):
    original, killed = getattr(os, call), True
    number = 0
    while killed:
        root = tmp_path / str(number)
        root.mkdir()
        commit(root, 1)
        commit(root, 2)
        left = [number]

        def counted(*args, left=left, **kwargs):
            left[0] -= 1
            if left[0] == -1 and moment == "before":
                raise Killed
            result = original(*args, **kwargs)
            if left[0] == -1:
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(os, call, counted)
            try:
                commit(root, 3, keep_last=2)
                killed = False
            except Killed:
                killed = True
        found = chosen(root)
        assert found in (root / "step-0000002", root / "step-0000003")
        assert_same(read(found).tensors, int(found.name[-1]))
        assert not list(root.glob("*.bad*"))
        commit(root, 4, keep_last=2)
        assert chosen(root) == root / "step-0000004"
        number += 1
    assert number > 1


def test_every_file_is_safetensors_and_in_the_manifest_with_its_size_and_hash(root):
    manifest = json.loads((root / "step-0000002" / MANIFEST).read_text())
    state = state_of(root / "step-0000002")
    assert sorted(os.listdir(state.parent)) == [MANIFEST, state.name]
    assert safetensors.torch.load_file(state)
    assert list(manifest["files"]) == [state.name]
    assert manifest["files"][state.name]["bytes"] == state.stat().st_size
    assert re.fullmatch("[0-9a-f]{64}", manifest["files"][state.name]["sha256"])


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_shares_of_ranks_hold_every_tensor_once(tmp_path, monkeypatch, size):
    """Ranks are threads that meet at a barrier."""
    barrier, results = threading.Barrier(size, timeout=20), {}

    def on_all(action, world):
        results[world.rank] = action()
        barrier.wait()
        found = [results[rank] for rank in range(size)]
        barrier.wait()
        return found

    def on_main(action, world):
        return on_all(lambda: action() if world.is_main else None, world)[0]

    def save_share(rank):
        save(tmp_path, tensors(1), {"step": 1}, fence=fence, world=World(rank, size), keep_last=2)

    monkeypatch.setattr(checkpoint, "on_all", on_all)
    monkeypatch.setattr(checkpoint, "on_main", on_main)
    fence = tmp_path / ".0001"
    fence.mkdir()
    with ThreadPoolExecutor(size) as pool:
        list(pool.map(save_share, range(size)))
    found = read(tmp_path / "step-0000001")
    assert (found.manifest["world_size"], len(found.manifest["files"])) == (size, size)
    parts = [safetensors.torch.load_file(found.path / name) for name in found.manifest["files"]]
    assert sorted(n for part in parts for n in part) == sorted(name for name, _ in tensors(1))
    assert_same(found.tensors, 1)
