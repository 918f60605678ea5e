"""What a command writes takes the place of nothing that fitb did not write."""

from __future__ import annotations

import os

import pytest
from snapshot import snapshot, touched

from fitb.base.errors import ConfigError
from fitb.config import Config
from fitb.config.yaml import to_yaml
from fitb.tools.demo import DemoConfig, demo
from fitb.tools.doctor.folder_probe import probe
from fitb.tools.report.build import report
from fitb.tools.report.report_config import ReportConfig
from fitb.tools.sync import MERGED, SyncConfig, sync


@pytest.fixture()
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(Config(run_dir=str(folder), steps=4)))
    (folder / "metrics.jsonl").write_text('{"train/step": 1, "student/top1": 0.5}\n')
    (folder / "wandb_id").write_text("abcd1234\n")
    return folder


def a_report(run):
    report(ReportConfig([str(run)], png=str(run / "png"), blanks=0))


def a_segment(run):
    sync(SyncConfig(str(run), offline=True))


def a_demo(run):
    demo(DemoConfig(out=str(run), max_mb=1e-4))  # not refused, it ends soon: too little text


def an_old_text(path):
    path.write_text("mine")


def an_html_page(path):
    path.write_text("<!DOCTYPE html>\n<html><title>mine</title></html>")


def a_link(path):
    (path.parent.parent / "mine.txt").write_text("mine")
    path.symlink_to(path.parent.parent / "mine.txt")


@pytest.mark.parametrize(
    ("command", "name", "put"),
    [
        (a_report, "report.html", an_old_text),
        (a_report, "report.html", an_html_page),
        (a_report, "report.html", a_link),
        (a_report, "png/accuracy.png", an_old_text),
        (a_report, "png/accuracy.png", a_link),
        (a_segment, f"{MERGED}/notes.txt", an_old_text),
        (a_demo, "summary.json", an_old_text),
    ],
)
def test_a_file_that_fitb_did_not_write_is_in_the_way_and_stays(command, name, put, run):
    (run / name).parent.mkdir(exist_ok=True)
    if command is a_report:  # which replaces its own
        command(run)
        command(run)
        assert (run / name).is_file()
        (run / name).unlink()
    put(run / name)
    before = snapshot(run.parent)
    with pytest.raises(ConfigError, match=f"{run / name.partition('/notes')[0]} .*; move it away"):
        command(run)
    changed = touched(before, run.parent)
    assert f"run/{name}" in before and not [p for p in changed if name in p or "mine" in p]
    (run / name).rename(run.parent / "away")
    if command is a_report:
        command(run)


def test_the_doctor_follows_no_link_that_waits_for_it_in_a_shared_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / f".fitb-doctor-{os.getpid()}").symlink_to(tmp_path / "mine.txt")
    before = snapshot(tmp_path)
    assert probe(str(tmp_path))["error"] == ""
    before.pop(".")  # a file came and went
    assert touched(before, tmp_path) == []
