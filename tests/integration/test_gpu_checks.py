"""`make gpu` on a CPU: every check runs through, and one that is broken on purpose fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import job
import pytest

GPU = Path(__file__).resolve().parents[1] / "gpu"


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit")
    subprocess.run([sys.executable, str(GPU / "kit.py"), str(folder)], check=True)
    return folder


def test_checks_of_a_gpu_pass_on_a_cpu_but_for_one_that_is_broken_on_purpose(kit, tmp_path):
    """`make gpu DRY=1` runs all of them, in two minutes; here are those of a step."""
    names = ["device", "first_step", "compiled", "attention_term", "fp8", "overflow", "collectives"]
    command = [sys.executable, str(GPU / "runner.py"), "--shards", str(kit / "shards")]
    command += ["--out", str(tmp_path), "--dry", "--broken", "attention_term", "--only", *names]
    done = subprocess.run(command, timeout=job.TIMEOUT_S)
    results = json.loads((tmp_path / "gpu.json").read_text())
    passed = {name: result["ok"] for name, result in results.items()}
    assert done.returncode == 1
    assert passed == dict.fromkeys(names, True) | {"attention_term": False}, results
    assert "0.5 apart" in results["attention_term"]["error"]
    table = (tmp_path / "gpu.md").read_text()
    assert all(f"| {name} | {'yes' if ok else 'NO'} |" in table for name, ok in passed.items())


def test_a_check_that_kills_its_process_or_is_late_has_failed_and_the_rest_goes_on(tmp_path):
    """The checks are replaced by such ones, beside a copy of the runner."""
    (tmp_path / "runner.py").write_text((GPU / "runner.py").read_text())
    (tmp_path / "setting.py").write_text(SETTING)
    (tmp_path / "checks.py").write_text(CHECKS)
    words = ["runner.py", "--shards", ".", "--out", "."]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, timeout=job.TIMEOUT_S)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 1
    assert {name: result["ok"] for name, result in results.items()} == {
        **dict.fromkeys(("killed", "spoils", "late"), False),
        **dict.fromkeys(("first", "after_killed", "after_spoils", "last"), True),
    }
    assert "ended with -9" in results["killed"]["error"]
    assert "late" in results["late"]["error"] and "RuntimeError" in results["spoils"]["error"]
    assert results["after_spoils"]["pid"] != results["after_killed"]["pid"]  # a new process


SETTING = """
class Wrong(AssertionError):
    pass

def Setting(*settings):
    return settings
"""
CHECKS = """
import os, signal, time
from types import SimpleNamespace

def killed(at):
    os.kill(os.getpid(), signal.SIGKILL)

def spoils(at):
    raise RuntimeError("an illegal memory access")

def late(at):
    time.sleep(600)

def good(at):
    return {"pid": os.getpid()}

order = {"first": good, "killed": killed, "after_killed": good, "spoils": spoils,
         "after_spoils": good, "late": late, "last": good}
CHECKS = {name: SimpleNamespace(run=run, deadline_s=1.0) for name, run in order.items()}
"""
