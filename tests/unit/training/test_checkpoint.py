"""Checkpoints that were cut, flipped, emptied, removed, or never finished."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from functools import partial
from itertools import count, product
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


def tensors(step):
    for name in ("student.weight", "student.bias", "projections.0.weight"):
        for kind in ("param", "exp_avg", "exp_avg_sq"):
            yield f"{kind}/{name}", torch.arange(4.0).reshape(2, -1).T + step


def commit(root, step, keep_last=10, keep_steps=(), **details):
    fence = root / ".0001"
    if not fence.is_dir():
        fence.mkdir()
    folder, _ = save(
        root,
        dict(tensors(step)),
        {"step": step, "rows_consumed": 8 * step, **details},
        fence=fence,
        world=ALONE,
        keep_last=keep_last,
        keep_steps=keep_steps,
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
    manifest, state = found.manifest, state_of(found.path)
    assert (manifest["step"], manifest["rows_consumed"], manifest["world_size"]) == (2, 16, 1)
    assert_same(found.tensors, 2)
    assert_same(safetensors.torch.load_file(state), 2)
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    assert manifest["files"] == {state.name: {"sha256": digest, "bytes": state.stat().st_size}}
    assert sorted(os.listdir(found.path)) == [MANIFEST, state.name]
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


SHAPES = ["[]", "null", "3", '{"format": 1, "files": 3}']
DAMAGE = [
    *product([truncate, flip, empty, lengthen, Path.unlink], ["state", "manifest"]),
    *((partial(Path.write_text, data=text), "manifest") for text in SHAPES),
]


@pytest.mark.parametrize(("damage", "file"), DAMAGE)
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


def test_a_checkpoint_of_a_newer_fitb_is_left_where_it_is(root):
    """It is good; only this program is old."""
    path = root / "step-0000002" / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format": 3}))
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


ATTEMPTS = [{"event": "attempt", "attempt": number} for number in (1, 2)]
CRASHED = [{"event": "stop", "step": None, "exit_code": 1}, {"event": "requeue", "step": 0}]
DONE, EVENTS, METRICS = "done.json", "events.jsonl", "metrics.jsonl"
UNREADABLE, LOST = "done.json cannot be read", "does not tell what it has saved"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({EVENTS: [ATTEMPTS[0], {"event": "save", "step": 12}, ATTEMPTS[1]]}, "saved step 12"),
        ({EVENTS: [{"event": "resume", "step": 12}, ATTEMPTS[1]]}, "saved step 12"),
        ({EVENTS: [*ATTEMPTS, {"event": "requeue", "step": 12}]}, "saved step 12"),
        ({EVENTS: [{"event": "stop", "step": 12}, {"event": "stop", "step": None}]}, "step 12"),
        ({EVENTS: [ATTEMPTS[1]], METRICS: [{"train/step": 3}]}, f"metrics.jsonl.*{LOST}"),
        ({EVENTS: [ATTEMPTS[1]], "export/README.md": []}, f"export.*{LOST}"),
        ({DONE: [{"exit_code": 0, "step": 9}]}, "saved step 9"),
        ({DONE: bytes(20)}, UNREADABLE),
        ({DONE: [[0]]}, UNREADABLE),
        ({EVENTS: [ATTEMPTS[0], *CRASHED, ATTEMPTS[1]], METRICS: [{"train/step": 3}]}, None),
    ],
)
def test_without_checkpoints_a_run_begins_only_if_none_can_have_been_saved(tmp_path, files, said):
    """The last of these crashed before its first save; `latest` and all are gone in each."""
    (tmp_path / "checkpoints").mkdir()
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        lines = content if isinstance(content, bytes) else map(json.dumps, content)
        data = content if lines is content else "".join(f"{line}\n" for line in lines).encode()
        (tmp_path / name).write_bytes(data)
    if said is None:
        assert load(tmp_path / "checkpoints", ALONE) is None
    for _ in range(2 if said else 0):
        with pytest.raises(CheckpointError, match=f"{tmp_path}.*{said}"):
            load(tmp_path / "checkpoints", ALONE)


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
        commit(tmp_path, step, keep_last=keep_last, keep_steps=[best and min(step, best)])
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
    assert os.listdir(root / ".0001") == []
    assert chosen(root) == root / "step-0000002"


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_any_moment_leaves_a_checkpoint_that_verifies(
    tmp_path, monkeypatch, call, moment
):
    original = getattr(os, call)
    for number in count():
        root, calls = tmp_path / str(number), count()
        root.mkdir()
        commit(root, 1)
        commit(root, 2)

        def counted(*args, calls=calls, last=number, **kwargs):
            kills = next(calls) == last
            if kills and moment == "before":
                raise Killed
            result = original(*args, **kwargs)
            if kills:
                raise Killed
            return result

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, call, counted)
            commit(root, 3, keep_last=2)
        found = chosen(root)
        assert found in (root / "step-0000002", root / "step-0000003")
        assert_same(read(found).tensors, int(found.name[-1]))
        assert not list(root.glob("*.bad*"))
        commit(root, 4, keep_last=2)
        assert chosen(root) == root / "step-0000004"
        if next(calls) <= number:  # all were met: nothing was killed
            break
    assert number > 0
