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


def checked(kit, out, *flags):
    """The exit code, and the results that the runner left."""
    command = [sys.executable, str(GPU / "runner.py"), "--shards", str(kit / "shards")]
    done = subprocess.run([*command, "--out", str(out), "--dry", *flags], timeout=500)
    return done.returncode, json.loads((out / "gpu.json").read_text())


def test_every_check_of_a_gpu_passes_on_a_cpu_and_is_in_the_table(kit, tmp_path):
    code, results = checked(kit, tmp_path)
    assert code == 0 and len(results) == 14, results
    table = (tmp_path / "gpu.md").read_text()
    assert all(result["ok"] and f"| {name} | yes |" in table for name, result in results.items())
    assert results["waits"]["zero2 bf16"] == 0 and results["signalled"]["exit_code"] == 85


def test_a_wrong_number_fails_and_the_checks_after_it_still_run(kit, tmp_path):
    names = ("--only", "device", "attention_term", "fp8", "--broken", "attention_term")
    code, results = checked(kit, tmp_path, *names)
    assert code == 1
    assert [result["ok"] for result in results.values()] == [True, False, True]
    assert "apart" in results["attention_term"]["error"]
    assert "| attention_term | NO |" in (tmp_path / "gpu.md").read_text()


def test_a_check_that_kills_its_process_or_is_late_has_failed_and_the_rest_goes_on(kit, tmp_path):
    """The checks are replaced by such ones, in a copy of the folder."""
    copy = tmp_path / "gpu"
    copy.mkdir()
    for file in ("runner.py", "setting.py"):
        (copy / file).write_text((GPU / file).read_text())
    (copy / "checks.py").write_text(CHECKS)
    done = subprocess.run(
        [sys.executable, str(copy / "runner.py"), "--shards", str(kit), "--out", str(tmp_path)],
        timeout=job.TIMEOUT_S,
    )
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 1
    assert {name: result["ok"] for name, result in results.items()} == {
        **dict.fromkeys(("killed", "spoils", "late"), False),
        **dict.fromkeys(("first", "after_killed", "after_spoils", "last"), True),
    }
    assert "ended with -9" in results["killed"]["error"]
    assert "late" in results["late"]["error"] and "RuntimeError" in results["spoils"]["error"]


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
