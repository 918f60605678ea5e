"""What is not fitb's, where a preparation works: it is refused or left as it is, never removed."""

import pytest
from preparing import but_for_names, interrupted_at
from snapshot import snapshot, touched

from fitb.base.errors import DataError
from fitb.corpus.prepare import prepare


def work_of(out):
    return out.parent / f".{out.name}.work"


def a_work_of_the_user(out):
    (work_of(out) / "runs").mkdir(parents=True)
    (work_of(out) / "runs" / "1.csv").write_text("mine")
    (work_of(out) / "thesis.tex").write_text("mine")


def a_plan_of_the_user(out):
    a_work_of_the_user(out)
    (work_of(out) / "thesis.tex").rename(work_of(out) / "plan.json")


def a_link_to_a_folder_of_the_user(out):
    a_work_of_the_user(out.with_name("mine"))
    work_of(out).symlink_to(out.with_name(".mine.work"))


def a_lock_of_the_user(out):
    work_of(out).with_name(".out.work.lock").write_text("mine")


@pytest.mark.parametrize(
    "put",
    [a_work_of_the_user, a_plan_of_the_user, a_link_to_a_folder_of_the_user, a_lock_of_the_user],
)
def test_a_hidden_folder_or_lock_that_no_preparation_made_is_refused_and_stays(
    put, make_config, shard_set, tmp_path
):
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
    config, shard_set, tmp_path, monkeypatch
):
    interrupted_at(monkeypatch, config, "write_manifest")
    work = work_of(tmp_path / "out")
    (work / "notes").mkdir()
    (work / "notes" / "why.txt").write_text("mine")
    before = snapshot(work / "notes")
    prepare(config)
    prepare(config)  # finds it made
    assert but_for_names(tmp_path / "out") == but_for_names(shard_set)
    assert touched(before, work / "notes") == []
    assert {path.name for path in work.iterdir()} == {"notes", "made-by-fitb-prepare"}
