"""The workflows run what the Makefile has, with as little power as they need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request):
    return yaml.safe_load(request.param.read_text())


def test_targets_that_are_run_are_those_of_the_makefile(workflow):
    run = "\n".join(step["run"] for step in steps(workflow) if "run" in step)
    asked = set(re.findall(r"^make (\S+)", run, re.MULTILINE))
    assert {"check", "test", "dist"} <= asked | ({"test"} if ".ci/run" in run else set())
    assert asked <= TARGETS


def test_actions_are_named_by_commit_and_leave_no_credentials(workflow):
    used = [step for step in steps(workflow) if "uses" in step]
    assert used
    for step in used:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
        if "checkout" in step["uses"]:
            assert step["with"]["persist-credentials"] is False


def test_a_workflow_may_read_and_ends_by_itself(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert "group" in workflow["concurrency"]
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 90


def test_no_workflow_has_a_secret_and_no_command_holds_what_others_write():
    for path in WORKFLOWS:
        assert "secrets." not in path.read_text()
        for step in steps(yaml.safe_load(path.read_text())):
            assert "${{" not in step.get("run", "")


def test_unit_tests_run_on_every_python_that_setup_cfg_names():
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text())
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert ci["jobs"]["unit"]["strategy"]["matrix"]["python"] == named
