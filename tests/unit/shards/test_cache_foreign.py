"""What is not fitb's, in and beside a cache: neither counted, nor changed, nor removed."""

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caching import NUM_ROWS, SHARD_ROWS, bound, expected_rows
from file_server import FileServer
from snapshot import snapshot, touched

from fitb.base.errors import ConfigError, SystemFault
from fitb.shards.cache import TOKENIZER, CacheSettings
from fitb.shards.shard_set import ShardSet

pytestmark = pytest.mark.usefixtures("impatient")

KEY = "0123456789abcdef0123456789abcdef"  # a name as sets have
ALL = np.arange(NUM_ROWS)


def fill(folder):
    """Put into a folder what a user may have there; return the folder."""
    (folder / ".ssh").mkdir(parents=True)
    (folder / "thesis").mkdir()
    (folder / KEY).mkdir()
    (folder / ".ssh" / "id_rsa").write_text("secret")
    (folder / ".ssh" / "id_rsa").chmod(0o400)
    (folder / "thesis" / "chapter1.tex").write_text("Once")
    (folder / "thesis" / "accounts.lock").write_text("of the thesis")
    for name in ("train-00000.arrow", "train-00001.arrow.9.part", "train-00002.arrow.lock"):
        (folder / KEY / name).write_text("mine")
    with open(folder / "thesis" / "pile.bin", "wb") as file:
        file.truncate(30 * 10**9)
    (folder / KEY / "gone.arrow").symlink_to("nowhere")
    (folder / KEY / "thesis.arrow").symlink_to(folder / "thesis" / "chapter1.tex")
    (folder / "thesis" / "keys").symlink_to(folder / ".ssh")
    os.link(folder / "thesis" / "chapter1.tex", folder / KEY / "same.arrow")
    os.mkfifo(folder / KEY / "fifo.arrow")
    return folder


def read_all(server, settings, local):
    """Read every row, one by one, so that a small cache removes and fetches again."""
    shards = ShardSet.open(server.url, "train", settings, max_mapped=1)
    rows = np.concatenate([shards.read(np.array([row])).input_ids for row in ALL[::3]])
    assert (rows == expected_rows(local, ALL[::3])).all()
    return shards


def limits(local):
    """Bounds in GB: the smallest that is admitted, a small one, one that never fills."""
    largest = max(path.stat().st_size for path in local.glob("*.arrow"))
    return {"smallest": largest / 1e9 + 1e-12, "small": bound(local) / 1e9, "huge": 1e9}


@pytest.mark.parametrize("limit", ["smallest", "small", "huge"])
@pytest.mark.parametrize("where", ["named", "through_a_link", "slurm", "tmp"])
def test_a_cache_touches_no_file_of_the_user_in_the_folder_that_it_is_given(
    where, limit, server, local, tmp_path, monkeypatch
):
    user = fill(tmp_path / "scratch")
    (tmp_path / "link").symlink_to(user)
    monkeypatch.setenv("SLURM_TMPDIR", str(user) if where == "slurm" else "")
    monkeypatch.setattr("tempfile.tempdir", str(user))
    named = {"named": str(user), "through_a_link": str(tmp_path / "link")}.get(where)
    before = snapshot(tmp_path)
    read_all(server, CacheSettings(named, limits(local)[limit], 30.0), local)
    assert touched(before, tmp_path) == ["scratch"]  # a folder was made in it
    asked = sum(server.requests[f"train-0000{number}.arrow"] for number in range(10))
    assert asked == 10  # 30 GB of another's are not counted


def test_a_cache_touches_no_file_of_the_user_among_its_own(server, settings, local):
    folder = read_all(server, settings, local).tokenizer_folder.parent
    home = folder.parent
    shutil.copytree(folder, home / KEY)  # with its mark and its locks
    (home / ("f" * 32)).symlink_to(home / KEY)
    kept = next(folder.glob("train-*.arrow"))
    os.link(kept, home / "kept.arrow")
    fitbs = {path for path in folder.iterdir() if path.name != TOKENIZER}
    fitbs |= {folder, home, home / "fitb-cache.lock"}  # their times change
    for place in (home, folder, folder / TOKENIZER):
        for name in ("notes.txt", "mine.arrow", ".hidden", "x.part", f"{kept.name}.77.part"):
            (place / name).write_text("mine")
        (place / "a.arrow").symlink_to(home / "notes.txt")
    fill(home / "mine")
    fill(folder / "mine")
    theirs = {p: f for p, f in snapshot(home).items() if home / p not in fitbs}
    for _ in range(2):
        read_all(server, settings, local)
    assert not kept.exists() or not kept.samefile(home / "kept.arrow")
    assert (home / "kept.arrow").read_bytes() == (local / kept.name).read_bytes()
    changed = touched(theirs, home)
    assert changed == ["kept.arrow"]  # it has lost its other name
    assert snapshot(home)["kept.arrow"][:4] == theirs["kept.arrow"][:4]


CHAPTER = Path("thesis") / "chapter1.tex"
PUT = {  # something of the user at a path
    "a file": lambda path, user: path.write_text("mine"),
    "a link": lambda path, user: path.symlink_to(user / CHAPTER),
    "a second name": lambda path, user: os.link(user / CHAPTER, path),
    "a folder": lambda path, user: fill(path),
}


@pytest.mark.parametrize("put", PUT)
@pytest.mark.parametrize(
    "name", ["train-00003.arrow", "train-00003.arrow.part", "train-00003.arrow.lock"]
)
def test_what_stands_in_the_place_of_a_file_of_the_cache_is_refused_and_stays(
    put, name, server, settings, local, tmp_path
):
    user = fill(tmp_path / "user")
    folder = read_all(server, replace(settings, max_gb=1.0), local).tokenizer_folder.parent
    for path in folder.glob("train-00003.arrow*"):
        path.unlink()
    PUT[put](folder / name, user)
    at = folder / name
    before, there = snapshot(user), snapshot(at)
    small = ShardSet.open(server.url, "train", settings, max_mapped=1)
    with pytest.raises(ConfigError, match="train-00003.arrow.*; move it away, or set data.cache_d"):
        small.read(np.array([3 * SHARD_ROWS]))
    assert there and touched(before, user) == touched(there, at) == []
    away = folder if name.endswith(".lock") else at
    away.rename(tmp_path / "away")
    assert (small.read(ALL).input_ids == expected_rows(local, ALL)).all()


def test_a_set_folder_that_was_replaced_by_a_link_is_refused_and_its_target_stays(
    server, settings, local, tmp_path
):
    shards = read_all(server, settings, local)
    folder = shards.tokenizer_folder.parent
    user = shutil.copytree(folder, tmp_path / "user")
    folder.rename(tmp_path / "moved")
    folder.symlink_to(user)
    before = snapshot(user)
    with pytest.raises(ConfigError, match="is a link or a file.*; move it away"):
        shards.fetch(range(10))
    with pytest.raises(ConfigError, match="is a link or a file"):
        ShardSet.open(server.url, "train", settings)
    with FileServer(local) as other:  # another set in the same cache counts, and makes room
        read_all(other, settings, local)
    assert touched(before, user) == []
    folder.unlink()
    read_all(server, settings, local)


@pytest.mark.parametrize("swap", ["file", "folder"])
def test_what_is_put_in_place_between_a_look_and_a_removal_stays(
    swap, server, settings, local, tmp_path, monkeypatch
):
    shards = read_all(server, settings, local)
    folder = shards.tokenizer_folder.parent
    user = fill(tmp_path / "user")
    for number in range(10):
        (user / f"train-0000{number}.arrow").write_text("mine")
    before, unlink, swapped = snapshot(user), os.unlink, []

    def after_a_swap(name, *, dir_fd=None):
        if not swapped and str(name).endswith(".arrow"):
            swapped.append(name)
            if swap == "file":
                (folder / name).rename(tmp_path / "moved")
                (folder / name).symlink_to(user / Path(name).name)
            else:
                folder.rename(tmp_path / "moved")
                folder.symlink_to(user)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr("os.unlink", after_a_swap)
    with contextlib.suppress(ConfigError):
        shards.fetch(range(10))
    assert swapped and touched(before, user) == []


def of_another_user(home, user):
    if os.getuid():
        pytest.skip("a folder of another user needs root")
    home.mkdir()
    os.chown(home, 12345, 12345)


def marked(by):
    """A folder whose mark is put there by a function of PUT."""
    return lambda home, user: (home.mkdir(exist_ok=True), PUT[by](home / "fitb-cache.lock", user))


HOMES = {
    "of another user": of_another_user,
    "a link": lambda home, user: home.symlink_to(user),
    "a file": PUT["a file"],
    "without a mark": PUT["a folder"],
    "full, with another mark": lambda home, user: (fill(home / "x"), marked("a file")(home, user)),
    "with another mark": marked("a file"),
    "with a link for a mark": marked("a link"),
}


@pytest.mark.parametrize("made", HOMES)
@pytest.mark.parametrize("named", [True, False])
def test_a_folder_of_the_cache_s_name_that_fitb_did_not_make_is_refused_and_stays(
    made, named, server, settings, local, tmp_path, monkeypatch
):
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(settings.folder))
    settings = settings if named else replace(settings, folder=None)
    home = settings.home()
    shutil.rmtree(home)
    user = fill(tmp_path / "user")
    HOMES[made](home, user)
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=f"{home} .*; move it away, or set data.cache_dir"):
        ShardSet.open(server.url, "train", settings)
    assert touched(before, tmp_path) == []
    read_all(server, replace(settings, folder=str(tmp_path / "another")), local)
    home.rename(tmp_path / "away")
    read_all(server, settings, local)


def test_a_cache_is_private_marked_and_made_again_if_it_is_removed(server, settings, local):
    Path(settings.folder).mkdir()
    settings.home().joinpath("fitb-cache.lock").write_bytes(b"fitb keeps")  # cut off by a kill
    shards = read_all(server, settings, local)
    home, folder = settings.home(), shards.tokenizer_folder.parent
    assert [path.stat().st_mode & 0o777 for path in (home, folder)] == [0o700, 0o700]
    assert home == Path(settings.folder) / f"fitb-shard-cache-{os.getuid()}"
    shutil.rmtree(home)
    shards.fetch(range(10))
    shutil.rmtree(folder)
    shards.fetch(range(10))
    (home / "fitb-cache.lock").unlink()
    with pytest.raises(ConfigError, match="is not a folder that fitb made: it lacks the right"):
        shards.fetch(range(10))


def test_a_cache_of_an_earlier_fitb_is_left_as_it_is(server, settings, local):
    folder = read_all(server, settings, local).tokenizer_folder.parent
    old = Path(settings.folder)
    shutil.copytree(folder, old / folder.name)
    (old / "accounts.lock").touch()
    before = snapshot(old / folder.name)
    read_all(server, settings, local)
    assert touched(before, old / folder.name) == []


def test_two_sets_share_the_bound_of_one_cache(server, settings, local):
    with FileServer(local) as second:
        sets = [ShardSet.open(one.url, "train", settings) for one in (server, second)]
        for number in range(10):
            for shards in sets:
                shards.fetch([number])
                held = sum(p.stat().st_size for p in settings.home().rglob("train-*.arrow"))
                assert 0 < held <= bound(local)
    assert sets[0].tokenizer_folder != sets[1].tokenizer_folder


def test_a_full_disk_is_told_and_leaves_what_is_there(server, settings, small_disk):
    user = small_disk / "filler"
    with open(user, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    before = snapshot(user)
    settings = replace(settings, folder=str(small_disk))
    with pytest.raises(SystemFault, match="no space left while writing .*fitb-shard-cache"):
        ShardSet.open(server.url, "train", settings)
    assert touched(before, user) == []
    user.unlink()
    ShardSet.open(server.url, "train", settings).fetch(range(10))
