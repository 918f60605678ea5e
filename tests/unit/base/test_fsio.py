"""Files that are whole or not there, also when the disk is full or the process dies."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fitb import fsio
from fitb.errors import SystemFault


def refuse(number):
    def raise_it(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return raise_it


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 64 kB; only root can mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True)
    except OSError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting a filesystem of 64 kB needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("content", ["caf\u00e9\n", b"\x00\xff", "", "x" * 300_000])
def test_write_atomic_writes_all_of_it(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("old")
    fsio.write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["os.replace", "os.fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_names_the_path(tmp_path, monkeypatch, call, number):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(call, refuse(number))
    with pytest.raises(SystemFault, match=str(path)):
        fsio.write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_that_is_not_about_space_stays_itself(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr("os.replace", refuse(errno.EACCES))
    with pytest.raises(PermissionError):
        fsio.write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_is_really_full_leaves_the_old_file(small_disk):
    path = small_disk / "file"
    fsio.write_atomic(path, "old")
    with pytest.raises(SystemFault, match=str(path)):
        fsio.write_atomic(path, b"x" * 200_000)
    assert path.read_text() == "old"
    assert os.listdir(small_disk) == ["file"]


def test_lines_that_no_longer_fit_name_the_file_and_leave_the_earlier_ones(small_disk):
    path = small_disk / "lines.jsonl"
    fsio.append_line(path, {"n": 1})
    with pytest.raises(SystemFault, match=str(path)):
        fsio.append_line(path, {"text": "x" * 200_000})
    fsio.mend_tail(path)
    assert list(fsio.read_lines(path)) == [{"n": 1}]


def test_a_reader_never_sees_a_gap_or_a_part(tmp_path):
    path = tmp_path / "file"
    whole = {letter * 50_000 for letter in "ab"}
    fsio.write_atomic(path, "a" * 50_000)
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            seen.append(path.read_text() in whole)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(100):
        fsio.write_atomic(path, "ab"[i % 2] * 50_000)
    done.set()
    reader.join()
    assert seen
    assert all(seen)


KILLED = """
import os, pathlib, signal, sys
from fitb import fsio
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], die)
fsio.write_atomic(pathlib.Path(sys.argv[1]), "new")
"""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path, moment):
    path = tmp_path / "file"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment])
    assert done.returncode == -9
    assert path.read_text() == "old"


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path):
    path = tmp_path / "folder"
    for text in ("old", "new"):
        with fsio.folder_written_whole(path) as scratch:
            assert scratch.parent == path.parent
            (scratch / text).write_text(text)
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_block_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), fsio.folder_written_whole(path) as scratch:
        (scratch / "half").write_text("half")
        raise ZeroDivisionError
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_full_disk_inside_a_block_leaves_the_old_folder_and_names_it(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(SystemFault, match=str(path)), fsio.folder_written_whole(path):
        refuse(errno.ENOSPC)()
    assert os.listdir(tmp_path) == ["folder"]


def test_a_last_rename_that_fails_leaves_the_old_folder_under_its_name(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    rename, renames = type(path).rename, []

    def second_fails(self, target):
        renames.append(target)
        if len(renames) == 2:
            raise OSError(errno.EIO, "no")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", second_fails)
    with pytest.raises(OSError, match="no"), fsio.folder_written_whole(path):
        pass
    monkeypatch.undo()
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("left", ["part", "old"])
def test_what_a_killed_process_of_the_same_number_left_is_no_obstacle(tmp_path, left):
    """In a container the same process number comes back at every start."""
    path = tmp_path / "folder"
    path.mkdir()
    remains = tmp_path / f".folder.{os.getpid()}.{left}"
    remains.mkdir()
    (remains / "half").write_text("half")
    with fsio.folder_written_whole(path) as scratch:
        (scratch / "new").write_text("new")
    assert os.listdir(path) == ["new"]


def test_json_comes_back_as_it_was_written(tmp_path):
    value = {"b": [1, 2.5, None], "a": "caf\u00e9", "c": {"d": True}}
    fsio.write_json(tmp_path / "value.json", value)
    assert fsio.read_json(tmp_path / "value.json") == value


def test_lines_come_back_in_order(tmp_path):
    path = tmp_path / "lines.jsonl"
    records = [{"n": n, "text": "caf\u00e9\n"} for n in range(5)]
    for record in records:
        fsio.append_line(path, record)
    assert list(fsio.read_lines(path)) == records


def test_a_file_of_lines_that_is_not_there_has_none(tmp_path):
    assert list(fsio.read_lines(tmp_path / "none")) == []
    fsio.mend_tail(tmp_path / "none")
    assert os.listdir(tmp_path) == []


def test_a_line_torn_at_any_byte_is_left_out_and_the_next_append_is_clean(tmp_path):
    path = tmp_path / "lines.jsonl"
    first, second = b'{"n": 1}\n', json.dumps({"n": 2}).encode()
    for size in range(len(second) + 1):
        path.write_bytes(first + second[:size])
        assert list(fsio.read_lines(path)) == [{"n": 1}]
        fsio.mend_tail(path)
        fsio.append_line(path, {"n": 3})
        assert list(fsio.read_lines(path)) == [{"n": 1}, {"n": 3}]


def test_a_file_that_holds_nothing_but_a_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": ')
    fsio.mend_tail(path)
    assert path.read_bytes() == b""


def test_checksums_are_those_of_sha256(tmp_path):
    data = bytes(range(256)) * 9000  # more than two blocks
    (tmp_path / "file").write_bytes(data)
    assert fsio.sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_the_hash_of_a_value_knows_content_and_not_the_order_of_keys():
    assert fsio.sha256_json({"a": 1, "b": [2]}) == fsio.sha256_json({"b": [2], "a": 1})
    assert fsio.sha256_json({"a": 1, "b": [2]}) != fsio.sha256_json({"a": 1, "b": [3]})
    expected = hashlib.sha256(b'{"a":1,"b":[2]}').hexdigest()
    assert fsio.sha256_json({"b": [2], "a": 1}) == expected


def test_json_for_others_has_null_where_a_number_is_not_finite():
    value = {"a": [1.5, float("nan"), (float("inf"),)], "b": {"c": -float("inf"), "d": "NaN"}}
    text = fsio.to_json(value)
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert strict == {"a": [1.5, None, [None]], "b": {"c": None, "d": "NaN"}}
    assert fsio.to_json({"\u00fc": 1}, ensure_ascii=False) == '{"\u00fc": 1}'


def test_the_command_line_prints_no_json_but_this(monkeypatch, capsys):
    """json.dumps writes a bare NaN, which is no JSON."""
    from fitb import cli
    from fitb.evaluate import run

    monkeypatch.setattr(run, "evaluate", lambda config: {"loss": float("nan")})
    cli.main(["evaluate", "--model", "m", "--shards", "s", "--json", "true"])
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"loss": None}
    assert "json.dumps" not in Path(cli.__file__).read_text()
