"""Folders that others read are as open as the umask says; what may not be read is named as such."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from fitb.base import fsio
from fitb.base.errors import ConfigError, DataError
from fitb.base.modes import denied, fault_of
from fitb.corpus.tokenizer import load_tokenizer
from fitb.model.load import load_model
from fitb.tools.export import find

NOBODY = 65534
UMASKS = [0o002, 0o022, 0o027, 0o077]


@contextlib.contextmanager
def umask(bits):
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def another_user():
    """Read as somebody else, whom root's rights do not cover."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def public():
    """A folder that every user may enter; those of pytest are the user's own."""
    folder = Path(tempfile.mkdtemp(prefix="fitb-modes-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def modes(folder):
    found: dict[str, set[int]] = {"file": set(), "folder": set()}
    for path in (folder, *folder.rglob("*")):
        found["folder" if path.is_dir() else "file"].add(stat.S_IMODE(path.stat().st_mode))
    return found


@pytest.mark.parametrize("bits", UMASKS)
def test_a_folder_written_whole_has_the_modes_of_the_umask(tmp_path, bits):
    """safetensors writes its file 0600, so a colleague could not read a model."""
    with umask(bits), fsio.folder_written_whole(tmp_path / "out") as scratch:
        (scratch / "plain").write_text("")
        (scratch / "inner").mkdir(mode=0o700)
        for name in ("private", "inner/private"):
            os.close(os.open(scratch / name, os.O_CREAT | os.O_WRONLY, 0o600))
        (scratch / "link").symlink_to("plain")
    assert modes(tmp_path / "out") == {"file": {0o666 & ~bits}, "folder": {0o777 & ~bits}}
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["out", "plain", "inner", "private", "private", "link"]
    )


def test_folders_of_a_group_stay_its_own(tmp_path):
    tmp_path.chmod(0o2775)
    with umask(0o007), fsio.folder_written_whole(tmp_path / "out") as scratch:
        (scratch / "inner").mkdir(mode=0o700)
    assert modes(tmp_path / "out")["folder"] == {0o2770}


def test_a_default_access_list_counts_more_than_the_umask(tmp_path):
    owner, group, others, nobody = 0x01, 0x04, 0x20, 0xFFFFFFFF
    entries = ((owner, 7), (group, 7), (others, 5))  # linux/posix_acl_xattr.h
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e, nobody) for e in entries)
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", packed)
    except OSError:
        pytest.skip("this filesystem has no access lists")
    with umask(0o077), fsio.folder_written_whole(tmp_path / "out") as scratch:
        (scratch / "plain").write_text("")
        os.close(os.open(scratch / "private", os.O_CREAT | os.O_WRONLY, 0o600))
    assert modes(tmp_path / "out") == {"file": {0o664}, "folder": {0o775}}


@pytest.mark.parametrize("closed", ["model.safetensors", "config.json", "tokenizer.json", "."])
def test_what_may_not_be_read_says_so_with_owner_and_mode(make_folder, tokenizer, public, closed):
    """It said that the file was not there, and to write it again."""
    folder = public / "model"
    shutil.copytree(make_folder(), folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    mode = 0o600 if os.geteuid() == 0 else 0  # 0 keeps the owner out as well
    (folder / closed).chmod(mode)
    said = f"permission denied: {folder / closed} belongs to .* mode {mode:04o}; .*chmod a"

    def load():
        load_tokenizer(folder)
        load_model(str(folder), tokenizer=tokenizer)

    with another_user(), pytest.raises(DataError, match=said) as caught:
        load()
    assert "write it again" not in str(caught.value) and "not there" not in str(caught.value)
    if closed == ".":
        with another_user(), pytest.raises(DataError, match=said):
            find(str(folder))
        with another_user(), pytest.raises(DataError, match=said):
            load_model(str(folder), tokenizer=tokenizer)
    remedy = str(caught.value).rpartition("`")[0].rpartition("`")[2]
    assert remedy == f"chmod a+rX {folder / closed}"
    subprocess.run(remedy.split(), check=True)
    with another_user():
        load()


def test_nothing_is_said_of_what_may_be_read_or_is_not_there(tmp_path):
    (tmp_path / "file").write_text("")
    assert denied(tmp_path / "file") == denied(tmp_path / "none" / "file") == ""


def test_a_folder_that_may_not_be_written_is_refused_with_owner_and_mode(public):
    """A colleague's run was started three times, though nothing but the mode was wrong."""
    (public / "run").mkdir(mode=0o755)
    if os.geteuid():
        (public / "run").chmod(0o555)
    with another_user(), pytest.raises(PermissionError) as refused:
        (public / "run" / "attempts").mkdir()
    with another_user():
        fault = fault_of(refused.value, "a file")
    assert isinstance(fault, ConfigError) and not fault.restart_helps
    assert str(public / "run") in str(fault) and "belongs to" in str(fault)
    (public / "run").chmod(0o777)  # what the remedy does for a group
    with another_user():
        (public / "run" / "attempts").mkdir()


@pytest.mark.parametrize(
    ("number", "helps"),
    [
        (errno.EROFS, False),
        *((number, True) for number in (errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EACCES)),
    ],
)
def test_what_lasts_is_told_from_what_may_pass(tmp_path, number, helps):
    name = str(tmp_path / "file")  # which this user may write
    fault = fault_of(OSError(number, os.strerror(number), name), "a file")
    assert fault.restart_helps == helps and name in str(fault)
    assert "a shard: " in str(fault_of(OSError(number, os.strerror(number)), "a shard"))
