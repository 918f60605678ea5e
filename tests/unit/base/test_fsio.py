"""Files that are whole or not there, also when the disk is full or the process dies."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import threading

import pytest
from executable import ran
from small import mounted

from fitb.base import fsio, renameat2
from fitb.base.errors import DataError, SystemFault


def refuse(number):
    def raise_it(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return raise_it


@pytest.mark.parametrize("content", ["caf\u00e9\n", b"\x00\xff", "", "x" * 300_000])
def test_write_atomic_writes_all_of_it(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("old")
    fsio.write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["os.replace", "os.fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_leaves_the_old_file_and_names_the_path(tmp_path, monkeypatch, call, number):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(call, refuse(number))
    with pytest.raises((SystemFault, PermissionError)) as caught:
        fsio.write_atomic(path, "new")
    full = isinstance(caught.value, SystemFault)
    assert full == (number != errno.EACCES) == (str(path) in str(caught.value))
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_is_really_full_leaves_the_old_file(small_disk):
    path = small_disk / "file"
    fsio.write_atomic(path, "old")
    with pytest.raises(SystemFault, match=str(path)):
        fsio.write_atomic(path, b"x" * 3_000_000)
    assert path.read_text() == "old"
    assert os.listdir(small_disk) == ["file"]


def test_lines_that_no_longer_fit_name_the_file_and_leave_the_earlier_ones(small_disk):
    path = small_disk / "lines.jsonl"
    fsio.append_line(path, {"n": 1})
    with pytest.raises(SystemFault, match=str(path)):
        fsio.append_line(path, {"text": "x" * 3_000_000})
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
from fitb.base import fsio, renameat2
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], die)
fsio.write_atomic(pathlib.Path(sys.argv[1]), "new")
"""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path, moment):
    path = tmp_path / "file"
    path.write_text("old")
    ran(sys.executable, "-c", KILLED, path, moment, code=-9)
    assert path.read_text() == "old"


@pytest.fixture
def folder(tmp_path):
    """A folder that is there before."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    return tmp_path / "folder"


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(ZeroDivisionError(), ZeroDivisionError), (OSError(errno.ENOSPC, "full"), SystemFault)],
)
def test_a_block_that_fails_leaves_the_old_folder_and_nothing_else(
    tmp_path, folder, failure, raised
):
    with pytest.raises(raised), fsio.folder_written_whole(folder) as scratch:
        (scratch / "half").write_text("half")
        raise failure
    assert os.listdir(folder) == ["old"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_last_rename_that_fails_leaves_the_old_folder_under_its_name(
    tmp_path, folder, monkeypatch
):
    def unsupported(source, target, flag):
        source.rename(tmp_path / "gone") if source.exists() else None
        return False

    monkeypatch.setattr(fsio, "rename", unsupported)
    with pytest.raises(FileNotFoundError), fsio.folder_written_whole(folder):
        pass
    assert os.listdir(folder) == ["old"]
    assert sorted(os.listdir(tmp_path)) == ["folder", "gone"]


@pytest.mark.parametrize("left", ["part", "old"])
def test_what_another_process_of_the_same_number_has_is_left_alone(tmp_path, folder, left):
    """In containers the same process number is there more than once."""
    others = tmp_path / f".folder.{os.getpid()}.{left}"
    others.mkdir()
    (others / "half").write_text("half")
    with fsio.folder_written_whole(folder) as scratch:
        (scratch / "new").write_text("new")
    assert os.listdir(folder) == ["new"]
    assert os.listdir(others) == ["half"]


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    if request.param == "two renames":  # a filesystem or a libc that cannot exchange names
        monkeypatch.setattr(renameat2.ctypes, "CDLL", lambda *args, **kwargs: object())


@pytest.fixture
def done(monkeypatch):
    """What is synced, in turn."""
    synced, fsync = [], os.fsync

    def noted(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    return synced


def test_what_a_folder_holds_is_on_the_disk_before_it_has_its_name(
    tmp_path, folder, monkeypatch, way, done
):
    """After a power cut an export was there whose files were empty or all zero."""
    rename = fsio.rename
    monkeypatch.setattr(fsio, "rename", lambda *args: (done.append("rename"), rename(*args))[1])
    with fsio.folder_written_whole(folder) as scratch:
        (scratch / "sub").mkdir()
        for name in ("a", "sub/b"):
            (scratch / name).write_text("new")
        (scratch / "link").symlink_to("nowhere")
    names = [scratch / name for name in ("a", "sub/b", "sub", ".")]
    first = done.index("rename")
    assert {str(tmp_path / name) for name in names} == set(done[:first])
    assert str(tmp_path) in done[first:]
    assert sorted(os.listdir(folder)) == ["a", "link", "sub"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, done):
    path, replace = tmp_path / "file", os.replace
    monkeypatch.setattr(os, "replace", lambda *args: (done.append("rename"), replace(*args)))
    with fsio.written_whole(path) as part:
        part.write_text("new")
    assert done == [str(part), "rename", str(tmp_path)]


@pytest.fixture
def power(tmp_path):
    """An ext4 filesystem of 16 MB, and what a power cut would leave of it now."""
    device, image = tmp_path / "device", tmp_path / "image"
    device.write_bytes(bytes(16 << 20))
    if not shutil.which("mkfs.ext4"):
        pytest.skip("there is no mkfs.ext4")
    ran("mkfs.ext4", "-q", device)
    with contextlib.ExitStack() as mounts:

        def cut():
            shutil.copyfile(device, image)
            return mounts.enter_context(mounted(tmp_path / "copy", "-o", "loop", image))

        yield mounts.enter_context(mounted(tmp_path / "here", "-o", "loop", device)), cut


def test_after_a_power_cut_a_folder_under_its_name_is_whole(power, way):
    here, cut = power
    path, data = here / "folder", os.urandom(200_000)
    for content in (b"old", data):
        with fsio.folder_written_whole(path) as scratch:
            (scratch / "small").write_bytes(content[:100])
            (scratch / "large").write_bytes(content)
    found = cut() / "folder"
    assert (found / "large").read_bytes() == data
    assert (found / "small").read_bytes() == data[:100]


def test_a_folder_that_must_not_be_replaced_is_not_and_another_is_made(tmp_path, way):
    path = tmp_path / "folder"
    with fsio.folder_written_whole(path, replace=False) as scratch:
        (scratch / "first").write_text("first")
    with (
        pytest.raises(FileExistsError),
        fsio.folder_written_whole(path, replace=False) as scratch,
    ):
        (scratch / "second").write_text("second")
    assert os.listdir(path) == ["first"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_filesystem_that_syncs_no_folders_is_passed_over_and_one_that_fails_is_not(
    tmp_path, monkeypatch
):
    for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
        monkeypatch.setattr(os, "fsync", refuse(number))
        fsio.fsync_dir(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        fsio.fsync_dir(tmp_path)


def test_a_folder_that_a_kill_left_between_two_renames_is_put_back_and_no_other(tmp_path):
    path, room = tmp_path / "export", tmp_path / "room"
    room.mkdir()
    assert not fsio.put_back(path, room)
    (room / ".export.1a2b.old").mkdir()
    (room / ".export.1a2b.old" / "old").write_text("old")
    (room / ".export.1a2b.part").mkdir()
    (room / ".other.1a2b.old").mkdir()
    assert fsio.put_back(path, room)
    assert os.listdir(path) == ["old"]
    (room / ".export.3c4d.old").mkdir()
    assert not fsio.put_back(path, room)  # there is one
    assert os.listdir(path) == ["old"]


DAMAGED = {
    "NULs": b"\0" * 60,
    "nothing": b"",
    "half": b'{"event": "at',
    "no UTF-8": b'{"event": "\xff"}',
    "a list": b"[1, 2]",
    "a number": b"3",
    "no key": b'{"other": 1}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_passed_over_with_a_word_or_an_error_that_names_it(
    tmp_path, caplog, damage
):
    path = tmp_path / "events.jsonl"
    lines = [b'{"event": "a"}', damage, b'{"event": "b"}', b'{"event": "torn']
    path.write_bytes(b"\n".join(lines))
    assert [r["event"] for r in fsio.read_records(path, "event")] == ["a", "b"]
    (said,) = caplog.messages
    assert str(path) in said and "(line 2)" in said
    with pytest.raises(DataError, match=rf"{path}:2: "):
        list(fsio.read_lines(path, "event"))
    lines[1] = b'{"event": "mended"}'
    path.write_bytes(b"\n".join(lines))
    assert len(list(fsio.read_lines(path, "event"))) == 3


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_an_error_of_fitb_that_names_it(tmp_path, damage):
    path = tmp_path / "done.json"
    path.write_bytes(damage)
    with pytest.raises(fsio.DamagedFile, match=f"{path} is damaged: "):
        fsio.read_json(path, "event")


def test_what_is_set_aside_takes_nobodys_place(tmp_path):
    for number, name in enumerate(["file.bad", "file.bad1"]):
        (tmp_path / "file").write_text(str(number))
        assert fsio.set_aside(tmp_path / "file").name == name
    assert [(tmp_path / f"file.bad{n}").read_text() for n in ("", "1")] == ["0", "1"]


def test_a_file_of_lines_that_is_not_there_has_none(tmp_path):
    assert list(fsio.read_lines(tmp_path / "none")) == []
    fsio.mend_tail(tmp_path / "none")
    assert os.listdir(tmp_path) == []


def test_a_line_torn_at_any_byte_is_left_out_and_the_next_append_is_clean(tmp_path):
    path = tmp_path / "lines.jsonl"
    torn = json.dumps({"n": 2}).encode()
    for size in range(len(torn) + 1):
        for whole in ([], [{"n": 1}]):
            path.write_bytes(b'{"n": 1}\n' * len(whole) + torn[:size])
            assert list(fsio.read_lines(path)) == whole
            fsio.mend_tail(path)
            for record in ({"n": 3, "text": "caf\u00e9\n"}, {"n": 4}):
                fsio.append_line(path, record)
            assert list(fsio.read_lines(path)) == [
                *whole,
                {"n": 3, "text": "caf\u00e9\n"},
                {"n": 4},
            ]


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
    from fitb.evaluation import evaluate

    monkeypatch.setattr(evaluate, "evaluate", lambda config: {"loss": float("nan")})
    cli.main(["evaluate", "--model", "m", "--shards", "s", "--json", "true"])
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"loss": None}
