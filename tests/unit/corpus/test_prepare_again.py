"""A preparation is whole or not at all, and goes on after an interruption."""

import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
from preparing import (
    but_for_names,
    contents,
    interrupted_at,
    put,
    started,
    wait_until,
)

from fitb.base.errors import DataError, SystemFault
from fitb.base.fsio import read_json, write_json
from fitb.corpus import stages
from fitb.corpus.prepare import prepare
from fitb.corpus.tokenizer import train_tokenizer
from fitb.corpus.work import folder_of


def test_preparing_again_does_nothing_and_says_so(make_config, shard_set, caplog):
    before = {path: path.stat().st_mtime_ns for path in shard_set.rglob("*")}
    logging.getLogger("fitb").propagate = True
    with caplog.at_level(logging.INFO, logger="fitb"):
        assert prepare(make_config(shard_set)) == shard_set / "manifest.json"
    assert "nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in shard_set.rglob("*")} == before
    assert [path.name for path in shard_set.parent.iterdir()] == [shard_set.name]


def test_another_set_in_the_folder_is_refused_with_what_differs(
    make_config, shard_set, text_file, tmp_path
):
    before = contents(shard_set)
    with pytest.raises(DataError, match=r"\(length: 32 -> 64; seed: 0 -> 3\)"):
        prepare(make_config(shard_set, length=64, seed=3))
    files = put(tmp_path / "other.txt", [text_file.read_text(encoding="utf-8"), "one more text"])
    with pytest.raises(DataError, match="other text"):
        prepare(make_config(shard_set, files=files))
    assert contents(shard_set) == before
    assert [path.name for path in shard_set.parent.iterdir()] == [shard_set.name]


def test_a_folder_with_other_files_is_refused_and_an_empty_one_used(make_config, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="no shard set"):
        prepare(make_config(out))
    assert contents(out) == {"thesis.tex": b"precious"}
    (out / "thesis.tex").unlink()
    assert prepare(make_config(out)).exists()


@pytest.mark.parametrize(
    "place", ["write_run", "train_tokenizer", "write_shard", "write_documents", "write_manifest"]
)
def test_an_interrupted_preparation_shows_nothing_and_goes_on_where_it_was(
    config, shard_set, tmp_path, monkeypatch, place
):
    original, calls = getattr(stages, place), []

    def interrupted(*args, **kwargs):
        calls.append(place)
        if len(calls) == 2 or place in ("train_tokenizer", "write_manifest"):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, place, interrupted)
        prepare(config)
    assert not (tmp_path / "out").exists()
    done = list(folder_of(config).rglob("*.run"))
    seen, write = [], stages.write_run
    monkeypatch.setattr(stages, "write_run", lambda *a, **k: seen.append(a) or write(*a, **k))
    prepare(config)
    assert bool(seen) == (place == "write_run") and (seen or done)
    assert but_for_names(tmp_path / "out") == but_for_names(shard_set)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_an_earlier_layout_of_the_working_folder_left_is_made_anew(
    config, shard_set, tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "write_manifest", lambda *a, **k: signal.raise_signal(signal.SIGINT))
        prepare(config)
    work = folder_of(config)
    settings = read_json(work / "settings.json")
    assert settings.pop("layout") > 1
    write_json(work / "settings.json", settings)  # as it was before layouts had numbers
    left = work / "minhash" / "left.npy"
    left.touch()
    pieces = {path.stat().st_ino for path in (work / "set").glob("*.arrow")}
    logging.getLogger("fitb").propagate = True
    prepare(config)
    assert "starting over" in caplog.text and not left.exists()
    assert pieces and but_for_names(tmp_path / "out") == but_for_names(shard_set)


def test_a_killed_worker_is_an_error_and_the_next_start_does_only_what_is_missing(
    make_config, shard_set, tmp_path
):
    config = make_config(tmp_path / "out", workers=2)
    killer = (
        "def fatal(work, shard):\n"
        "    if shard.index == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(work, shard)\n"
        "stages._write_piece = fatal\n"
    )
    with started(config, tmp_path, killer) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == SystemFault.exit_code, said
    assert "a worker of stage write was killed" in said
    assert "Traceback" not in said
    work = folder_of(config)
    pieces = {path.stem for path in (work / "pieces").glob("*.json")}
    assert read_json(work / "plan.json")["units"]  # what earlier versions call splits
    assert pieces and "train-00003" not in pieces
    kept = {path.stem: path.stat().st_ino for path in (work / "set").glob("*.arrow")}
    prepare(config)
    after = {path.stem: path.stat().st_ino for path in (tmp_path / "out").glob("*.arrow")}
    assert all(after[name] == kept[name] for name in pieces)
    assert but_for_names(tmp_path / "out") == but_for_names(shard_set)


def test_two_preparations_of_one_folder_at_once_are_refused(config, tmp_path):
    stopper = "stages.train_tokenizer = lambda *a, **k: os.kill(os.getpid(), signal.SIGSTOP)\n"
    with started(config, tmp_path, stopper) as first:
        try:
            wait_until(lambda: Path(f"/proc/{first.pid}/stat").read_text().split()[2] == "T")
            with pytest.raises(DataError, match="by another preparation right now"):
                prepare(config)
        finally:
            first.send_signal(signal.SIGKILL)
    prepare(config)
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "change",
    [lambda text: text + b"\n\none more text", lambda text: text.replace(b"reader", b"writer")],
    ids=["longer", "of the same size"],
)
def test_a_change_of_the_input_between_two_starts_begins_anew(
    made, make_config, text_file, tmp_path, monkeypatch, change
):
    path = tmp_path / "texts.txt"
    path.write_bytes(text_file.read_bytes())
    interrupted_at(monkeypatch, make_config(tmp_path / "out", files=[str(path)]), "_write_piece")
    path.write_bytes(change(text_file.read_bytes()))
    again, fresh = (made(name, files=[str(path)]) for name in ("out", "fresh"))
    assert but_for_names(again) == but_for_names(fresh)


def test_another_seed_or_tokenizer_between_two_starts_is_refused(
    made, make_config, shard_set, tmp_path, texts, monkeypatch
):
    given = str(shard_set / "tokenizer")
    interrupted_at(monkeypatch, make_config(tmp_path / "out", tokenizer=given), "_write_piece")
    train_tokenizer(texts[:50], 256, tmp_path / "other")
    for tokenizer, seed, named in ((given, 1, "seed"), (tmp_path / "other", 0, "tokenizer_fing")):
        with pytest.raises(DataError, match=rf"unfinished preparation of other settings \({named}"):
            made("out", tokenizer=str(tokenizer), seed=seed)
    manifests = (folder / "manifest.json" for folder in (made("out", tokenizer=given), shard_set))
    assert len({read_json(path)["fingerprint"] for path in manifests}) == 1


def test_what_a_killed_task_left_in_the_set_does_not_become_part_of_it(
    config, shard_set, tmp_path, monkeypatch
):
    interrupted_at(monkeypatch, config, "write_manifest")
    (folder_of(config) / "set" / ".train-00000.arrow.host.1.part").write_bytes(b"half")
    prepare(config)
    assert but_for_names(tmp_path / "out") == but_for_names(shard_set)


@pytest.mark.parametrize("name", ["train-00001.arrow", "tokenizer/tokenizer.json"])
def test_a_set_that_lost_a_file_is_not_taken_for_made(make_config, shard_set, tmp_path, name):
    out = shutil.copytree(shard_set, tmp_path / "set")
    (out / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        prepare(make_config(out))


def test_a_kill_while_it_tidies_up_costs_nothing(config, shard_set, tmp_path, monkeypatch):
    remove, calls = os.rmdir, []

    def interrupted(path, **settings):
        if Path(path).parent == folder_of(config) and Path(path).name in ("runs", "pieces", "set"):
            calls.append(path)
            raise KeyboardInterrupt
        remove(path, **settings)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rmdir", interrupted)
        prepare(config)
    assert calls
    prepare(config)
    assert but_for_names(tmp_path / "out") == but_for_names(shard_set)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_control_c_is_one_line_and_the_next_start_goes_on(make_config, shard_set, tmp_path):
    config = make_config(tmp_path / "out", workers=2)
    slow = (
        "def slowly(work, shard):\n"
        f"    open({str(tmp_path / 'begun')!r}, 'w').close()\n"
        "    time.sleep(0.5)\n"
        "    write(work, shard)\n"
        "stages._write_piece = slowly\n"
    )
    with started(config, tmp_path, slow) as process:
        wait_until((tmp_path / "begun").exists)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in said and "interrupted" in said
    assert list((folder_of(config) / "pieces").glob("*.json"))
    prepare(config)
    assert but_for_names(tmp_path / "out") == but_for_names(shard_set)


def test_control_c_while_workers_are_started_does_not_hang(make_config, shard_set, tmp_path):
    """A worker that had started but was not yet known took the end of another one's queue."""
    config = make_config(tmp_path / "out", workers=2)
    interrupted = (
        "from multiprocessing.context import ForkServerProcess as Process\n"
        "start, begun = Process.start, []\n"
        "def started(self):\n"
        "    start(self)\n"
        "    begun.append(self)\n"
        "    if len(begun) == 2: signal.raise_signal(signal.SIGINT)\n"
        "Process.start = started\n"
    )
    with started(config, tmp_path, interrupted) as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted" in said, said
    prepare(config)
    assert but_for_names(tmp_path / "out") == but_for_names(shard_set)
