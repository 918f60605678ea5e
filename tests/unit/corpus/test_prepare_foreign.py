"""What is not fitb's, where a preparation works: it is refused or left as it is, never removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from preparing import MakeConfig, but_for_names, interrupted_at
from snapshot import snapshot, touched

from fitb.base.errors import DataError
from fitb.corpus.prepare import prepare


def a_work_of_the_user(out: Path) -> None:
    work = out.parent / f".{out.name}.work"
    (work / "runs").mkdir(parents=True)
    (work / "runs" / "1.csv").write_text("mine")
    (work / "thesis.tex").write_text("mine")


def a_plan_of_the_user(out: Path) -> None:
    a_work_of_the_user(out)
    (out.parent / f".{out.name}.work" / "thesis.tex").rename(
        out.parent / f".{out.name}.work" / "plan.json"
    )


def a_link_to_a_folder_of_the_user(out: Path) -> None:
    a_work_of_the_user(out.with_name("mine"))
    (out.parent / f".{out.name}.work").symlink_to(out.with_name(".mine.work"))


def a_lock_of_the_user(out: Path) -> None:
    (out.parent / f".{out.name}.work.lock").write_text("mine")


@pytest.mark.parametrize(
    "put",
    [a_work_of_the_user, a_plan_of_the_user, a_link_to_a_folder_of_the_user, a_lock_of_the_user],
)
def test_a_hidden_folder_or_lock_that_no_preparation_made_is_refused_and_stays(
    put: Callable[[Path], None], make_config: MakeConfig, shard_set: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    put(place / "out")
    before = snapshot(place)
    config = make_config(place / "out")
    with pytest.raises(DataError, match=r"\.out\.work.*; move it away, or name another folder"):
        prepare(config)
    before.pop(".")  # a lock came and went
    assert before and touched(before, place) == []
    for path in place.glob(".out.*"):
        path.rename(tmp_path / path.name)
    prepare(config)
    assert but_for_names(place / "out") == but_for_names(shard_set)


def test_what_a_user_put_beside_an_interrupted_preparation_outlives_it(
    make_config: MakeConfig, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path / "out")
    interrupted_at(monkeypatch, config, "write_manifest")
    work = tmp_path / ".out.work"
    (work / "notes").mkdir()
    (work / "notes" / "why.txt").write_text("mine")
    before = snapshot(work / "notes")
    prepare(config)
    prepare(config)  # finds it made
    assert but_for_names(tmp_path / "out") == but_for_names(shard_set)
    assert touched(before, work / "notes") == []
    assert {path.name for path in work.iterdir()} == {"notes", "made-by-fitb-prepare"}
