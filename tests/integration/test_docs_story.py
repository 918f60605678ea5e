"""The quickstart and the page for notebooks, run as they stand, in one folder, made smaller."""

from __future__ import annotations

import contextlib
import io

import job
import pytest
from documents import ROOT, blocks, commands

from fitb import cli
from fitb.base.fsio import read_json

# What makes a story of minutes one of seconds: words of the pages, and what stands for them here.
SMALLER = {
    "--max_mb 14 --vocab_size 4096": "--max_mb 0.3 --vocab_size 600",
    "--steps 2000": "--steps 6",
    "--steps 1000": "--steps 6",
    "--steps 300": "--steps 6",
    "--rows 1000": "--rows 20",
}
SMALL = "--global_batch 4 --micro_batch 4 --eval.rows 8 --track.wandb disabled"
ON_A_CLUSTER = "## On the login node of a cluster"


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Where the story takes place; one process, one thread, no account."""
    place = tmp_path_factory.mktemp("story")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("PYTHONPATH", str(ROOT))
        yield place


def smaller(text):
    for theirs, ours in SMALLER.items():
        text = text.replace(theirs, ours)
    return text


def run(words):
    """Run a fitb command: training in a process of its own, all others in this one."""
    program, command, *flags = words
    assert program == "fitb"
    if command == "train":
        done = job.fitb(command, *flags, *SMALL.split())
        assert done.returncode == 0, done.stderr
        return done.stderr
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main([command, *flags])
    assert code == 0, (words, out.getvalue())
    return out.getvalue()


@pytest.fixture(scope="module")
def quickstart(folder):
    """Run the laptop's part of the page; return what each command printed, the last of its name."""
    page = ROOT / "docs" / "quickstart.md"
    end = page.read_text().split("\n").index(ON_A_CLUSTER)
    told: dict[str, str] = {}
    for block in blocks(page):
        if block.line < end and block.kind == "bash" and not block.reason:
            for words in commands(smaller(block.text)):
                told[words[1]] = run(words)
    return told


def test_the_quickstart_of_a_laptop_works_line_by_line(quickstart, folder):
    told = quickstart
    assert " ".join(told) == "prepare inspect train status evaluate fill export report"
    assert told["prepare"].strip().endswith("data/demo/manifest.json")
    assert "runs/student: finished at step 6 of 6" in told["status"]
    assert told["fill"].count("%") == 3
    files = {path.name for path in (folder / "models" / "student").iterdir()}
    assert files >= {"config.json", "model.safetensors", "README.md"}


def test_the_page_for_notebooks_runs_from_top_to_bottom(quickstart, folder):
    """After the quickstart, whose shards and teacher it uses."""
    names: dict[str, object] = {}
    out = io.StringIO()
    code = [block.text for block in blocks(ROOT / "docs" / "api.md") if block.kind == "python"]
    assert len(code) == 5
    with contextlib.redirect_stdout(out):
        for text in code:
            text = smaller(text).replace("--steps 6", f"--steps 6 {SMALL}")
            exec(compile(text, "docs/api.md", "exec"), names)
    names["jobs"][0]._process.wait(60)  # type: ignore[index]  # or it is warned of
    assert "all steps done" in out.getvalue() and out.getvalue().count("%") == 2
    assert read_json(folder / "runs" / "notebook" / "done.json")["exit_code"] == 0


def test_what_makes_the_story_smaller_is_on_the_pages():
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("quickstart.md", "api.md"))
    assert not [words for words in SMALLER if words not in pages]
