"""The page as it is written: whole, escaped, small, without torch, and refused in a sentence."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from html_page import HtmlPage
from report_runs import evaluation, events, record

from fitb.cli import main
from fitb.tools.report.blanks import spaced
from fitb.tools.report.build import report
from fitb.tools.report.charts import tick
from fitb.tools.report.report_config import ReportConfig

HOSTILE = "<img src=x onerror=alert(1)>&\"'$x$"
FEW = [{"train/step": step, "student/loss_mlm": 9.0 - step} for step in (1, 2, 3)]

Write = Callable[..., Path]


def written(*runs, **changes):
    settings = {"blanks": 0, "runs": [str(run) for run in runs], **changes}
    report(ReportConfig(**settings))
    return HtmlPage((runs[0] / "report.html").read_text())


def test_a_page_stands_alone_and_shows_every_chart_the_attempts_and_where_it_comes_from(
    write, tmp_path
):
    run = write()
    folder = run / "evaluation"
    folder.mkdir()
    (folder / "x.json").write_text(json.dumps(evaluation(str(run / "export"), 0.5)))
    result = report(ReportConfig([str(run)], png=str(tmp_path / "png"), blanks=0))
    page = HtmlPage((run / "report.html").read_text())
    svgs = page.tags.count("svg")
    assert svgs == len(result["charts"]) + 1  # attempts: one for wide screens, one for phones
    assert page.tags.count("title") == svgs + 1 and page.tags.count("desc") == svgs
    assert len(set(page.ids)) == len(page.ids)
    text = page.text()
    for part in (
        *("SIGTERM (exit code 85)", "2: a1, b2", "0 to 20", "20 to 40", "all steps done"),
        f"{'c' * 40}; from attempt 2 on {'d' * 40}, with local changes (1 lines",
        "1,234 3.000 2.990 to 3.010 - 50.0% 49.0 to 51.0",
        "lr: 0.002",
        "--blanks 0",
    ):
        assert part in text, part
    for name in result["png"]:
        data = Path(name).read_bytes()
        width, _ = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG") and width >= 384 / 72 * 300 - 1
    assert len(result["png"]) == len(result["charts"])
    assert not list(run.glob(".*.part"))


def test_names_values_and_reasons_stay_text_wherever_they_stand(write):
    hostile = [
        {"event": "attempt", "attempt": 1, "time": "2026-11-25T10:00:00", "hosts": [HOSTILE]},
        {"event": "stop", "attempt": 1, "reason": HOSTILE, "exit_code": 1, "step": 4},
    ]
    config = json.dumps({"steps": 4, "track": {HOSTILE: HOSTILE}, "data": {"u": "s3://k:pw@h/x"}})
    runs = [
        write(HOSTILE.replace("/", ""), events=hostile, config=config, metrics=FEW),
        write("other", metrics=[{"train/step": 1, f"weighted/{HOSTILE}": 1.0, "student/top1": 1}]),
    ]
    (runs[0] / "evaluation").mkdir()
    found = evaluation(HOSTILE, 0.5)
    found["sets"][HOSTILE] = found["sets"].pop("validation")
    (runs[0] / "evaluation" / "x.json").write_text(json.dumps(found))
    page = written(*runs)
    assert page.text().count(HOSTILE) > 15
    assert page.texts_in("text").count(HOSTILE) >= 2  # a legend, and the name of a model
    assert "s3://***@h/x" in page.text() and "pw@" not in page.text()


NOTHING = {"metrics": None, "events": None, "provenance": None}
ODD = {"age_s": 1e999, "time": [], "hosts": {}, "reason": 3}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (NOTHING, "Nothing is logged yet"),
        ({**NOTHING, "config": None}, "no config.yaml that can be read"),
        ({"metrics": '{"train/step": 1, "student/loss_mlm": NaN}\n{"train'}, "is torn"),
        ({"metrics": FEW, "events": '{"event": "attempt", "attempt": 1}\n{"eve'}, "is torn"),
        ({"metrics": FEW, "events": "[]\n", "provenance": "[1, null]"}, "damaged line is skipped"),
        ({"metrics": [{"train/step": 1, "a": 1e308, "b": 10**400}]}, "2 logged values are not"),
        ({"metrics": FEW, "config": "steps: many\ntrack: [1]\n"}, "steps: many"),
        ({"metrics": FEW, "events": [each | ODD for each in events()]}, "no reason on record"),
    ],
)
def test_a_run_that_has_hardly_begun_or_is_damaged_gives_a_page_that_says_so(write, files, said):
    folder = write(**files)
    text = written(folder).text()
    assert said in text and "Evaluation" in text and "Provenance" in text
    both = written(folder, write("other", metrics=FEW)).text()
    assert said in both and "Runs side by side" in both


def test_several_runs_have_a_table_of_what_differs_and_a_page_again_is_the_same(write):
    changed = 'run_dir: "b"\nsteps: 40\noptim:\n  lr: 0.004\n'
    runs = write("first", metrics=FEW), write("second", metrics=FEW, config=changed)
    text, again = (written(*runs).text().partition("Written by")[0] for _ in range(2))
    assert text == again
    assert "first and second" in text
    assert "optim.lr 0.002 0.004" in text and "data.shards /nowhere/shards absent" in text
    differences = text[text.index("what differs") : text.index("Provenance")]
    assert "steps" not in differences and "run_dir" not in differences


def test_a_run_of_many_steps_gives_a_small_page(write):
    many = [json.dumps(record(1 + step) | {"train/step": -1}) for step in range(1000)]
    text = "".join(f"{many[i % 1000].replace('-1', str(i))}\n" for i in range(12_000))
    folder = write(metrics=text)
    result = report(ReportConfig([str(folder)], blanks=0))
    assert result["runs"][0]["logged_steps"] == 12_000
    assert result["bytes"] < 2_000_000


def test_the_command_says_what_it_wrote_and_needs_no_torch(write, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from fitb.cli import main;"
        " sys.exit(main(sys.argv[1:]))"
    )
    folder = write(metrics=FEW, config=f"steps: 40\ndata:\n  shards: {tmp_path / 'shards'}\n")
    for path in (folder / "export" / "config.json", tmp_path / "shards" / "manifest.json"):
        path.parent.mkdir()
        path.write_text("{}")
    command = [sys.executable, "-c", code, "report", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["page"] == str(folder / "report.html")
    assert found["runs"][0]["notes"] == ["No blanks: torch is not installed."]


def test_what_cannot_be_asked_for_drawn_or_written_is_refused(write, monkeypatch, capsys):
    folder = str(write(metrics=FEW))
    for flags, code, said in (
        ([folder, "--blanks", "-1"], 2, "blanks=-1"),
        ([folder, folder], 2, "twice"),
        ([f"{folder}/logs"], 2, "not the folder of a run"),
        ([folder, "--out", f"{folder}/config.yaml/x.html", "--blanks=0"], 4, "cannot write"),
        ([folder, "--png", f"{folder}/config.yaml", "--blanks=0"], 4, "cannot write into"),
    ):
        assert main(["report", *flags]) == code
        assert said in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", folder]) == 2
    assert "pip install 'fitb[plots]'" in capsys.readouterr().err
    assert not Path(folder, "report.html").exists()


def test_ticks_are_short_and_words_are_spaced_as_people_do():
    assert [tick(value) for value in (0.05, 250.0, 1500.0, 2e7)] == ["0.05", "250", "1.5k", "20M"]
    words = [("os", False), (".", False), ("path", True), ("(", False), ("x", False), (")", False)]
    assert "".join(w["gap"] + w["text"] for w in spaced(words, "see")) == " os. path (x)"
