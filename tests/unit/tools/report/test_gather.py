"""Files of a run as values: whole, torn, damaged, missing; names and differences of several."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from report_runs import comparison, evaluation, events, record

from fitb.base.errors import ConfigError
from fitb.tools.report.evaluations import read_evaluations
from fitb.tools.report.gather import RunData, differing, gather, names_of
from fitb.tools.report.panels import SECTIONS, panels_of
from fitb.tools.report.timeline import timed

Write = Callable[..., Path]


def test_a_curve_holds_what_was_logged_and_a_gap_for_what_is_no_number(write):
    lines = [record(step) for step in (10, 20, 30)]
    lines[1]["student/loss_mlm"] = math.inf
    lines[2]["optim/grad_norm"] = 10**400
    del lines[0]["perf/mfu"]
    run = gather(write(metrics=lines), "run")
    assert run.num_logged == 3
    student = run.curves["student/loss_mlm"]
    np.testing.assert_array_equal(student.steps, [10, 20, 30])
    np.testing.assert_array_equal(student.values, [7.0, np.nan, 5.0])
    np.testing.assert_array_equal(run.curves["perf/mfu"].steps, [20, 30])
    assert run.last("optim/grad_norm") == 2.5 and run.last("no/such") is None
    assert "2 logged values are not finite; charts have gaps there." in run.notes


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"metrics": 'x\n[1]\n{"train/step": 1, "a": 2.0}\n'}, "metrics.jsonl: 2 damaged lines"),
        ({"metrics": '{"train/step": "1"}\n{"train/step": -1}\n'}, "Nothing is logged yet"),
        ({"events": None}, "No attempt is on record"),
        ({"events": 'x\n{"event": "attempt", "attempt": 1}\n'}, "events.jsonl: a damaged line"),
        ({"events": '{"time": 3}\n'}, "No attempt is on record"),
        ({"config": "a: [1"}, "no config.yaml that can be read"),
        ({"provenance": None}, "Commit and versions are not known"),
        ({"provenance": "{}"}, "Commit and versions are not known"),
    ],
)
def test_what_is_missing_or_damaged_is_said_and_the_rest_is_read(write, files, said):
    run = gather(write(**files), "run")
    assert [note for note in run.notes if said in note]
    if "metrics" not in files:
        assert run.num_logged == 40
    if "events" not in files:
        assert [attempt.exit_code for attempt in run.attempts] == [85, 0]


def test_a_whole_run_has_nothing_to_say_about_its_files(write):
    run = gather(write(), "run")
    assert not run.notes
    assert run.status and run.status.state == "finished"
    assert run.config["optim.lr"] == 0.002 and run.resumed_at() == [20]


def test_names_are_the_shortest_ends_of_paths_that_differ():
    assert names_of([Path("/a/one"), Path("/a/two")]) == ["one", "two"]
    assert names_of([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert names_of([Path("/a/\x1b[1m\n")]) == ["\ufffd[1m\ufffd"]
    with pytest.raises(ConfigError, match="twice"):
        names_of([Path("/a/one"), Path("/a/./one")])


def test_configurations_differ_in_the_keys_that_differ_and_in_no_other():
    runs = [
        RunData(Path("a"), "a", config={"run_dir": "a", "seed": 0, "lr": 0.1, "same": [1]}),
        RunData(Path("b"), "b", config={"run_dir": "b", "seed": False, "lr": 0.1, "same": [1]}),
        RunData(Path("c"), "c", config={"run_dir": "c", "seed": 0, "same": [1]}),
        RunData(Path("d"), "d"),
    ]
    assert differing(runs) == {"seed": [0, False, 0, "?"], "lr": [0.1, 0.1, "absent", "?"]}
    assert differing(runs[:1]) == differing([runs[3], runs[3]]) == {}


def test_every_logged_metric_of_the_design_is_in_a_panel(write):
    run = gather(write(), "run")
    ours = [panel for section in SECTIONS for panel in panels_of(section, [run])]
    assert len({panel.name for panel in ours}) == len(ours)
    left_out = {"train/loss", "perf/steps_per_s"}
    # The student's loss stands beside the distillation loss and beside validation, and once more
    # in the chart of one against the other.
    assert sum(len(panel.series) for panel in ours) == len(run.curves) - len(left_out) + 2


def test_several_runs_have_a_panel_for_each_metric_and_a_line_for_each_run(write):
    alone = [{k: v for k, v in record(s).items() if "distill" not in k} for s in range(1, 9)]
    runs = [gather(write("a"), "a"), gather(write("b", metrics=alone), "b")]
    found = {p.name: p for section in SECTIONS for p in panels_of(section, runs)}
    assert [line.label for line in found["student"].series] == ["a", "b"]
    hidden = [p for name, p in found.items() if "hidden-layer" in name]
    assert [[line.label for line in panel.series] for panel in hidden] == [["a"], ["a"]]
    assert [panel.label for panel in hidden] == ["hidden states: layer 1", "hidden states: layer 2"]
    colours = {(line.label, line.colour) for panel in found.values() for line in panel.series}
    assert colours == {("a", 0), ("b", 1)}


def test_models_of_the_same_rows_and_masks_meet_and_baselines_are_listed_once(write, tmp_path):
    runs = [gather(write(name), name) for name in ("a", "b")]
    sources = [str(run.path / "export") for run in runs]
    for run, source, top1 in zip(runs, sources, (0.5, 0.4), strict=True):
        (run.path / "evaluation").mkdir()
        (run.path / "evaluation" / "x.json").write_text(json.dumps(evaluation(source, top1)))
    for name, content in (
        ("other", evaluation("models/tiny", 0.3, seed=1)),
        ("apart", comparison(*sources)),
        ("bad", {"sets": 3}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    named = [f"{tmp_path}/{name}.json" for name in ("other", "apart", "bad", "other")]
    (same_rows, other_masks), (paired,), notes = read_evaluations(runs, named)
    assert [row.label for row in same_rows.rows] == ["a", "b", "unigram"]
    assert [row.metrics["top1"].value for row in same_rows.rows] == [0.5, 0.4, 0.05]
    assert [row.label for row in other_masks.rows] == ["tiny", "unigram"]
    assert paired.title == "a (A) and b (B), validation"
    assert notes == ["bad.json cannot be read as an evaluation."]
    with pytest.raises(ConfigError, match="nowhere.json"):
        read_evaluations(runs, ["nowhere.json"])


def test_an_attempt_without_an_end_reaches_as_far_as_was_logged(write):
    live = [event for event in events() if event["event"] != "stop"]
    folder = write(events=live)
    begin = gather(folder, "run").attempts[0].began
    assert begin
    os.utime(folder / "metrics.jsonl", (begin.timestamp() + 500,) * 2)
    (_, first), (_, last) = timed(gather(folder, "run"))
    assert first == [(0.0, 0), (9.0, 0), (60.0, 20)]
    assert last == [(300.0, 20), (306.0, 20), (500.0, 40)]
