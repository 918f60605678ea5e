"""What the doctor makes of strings and numbers, without the things themselves."""

from __future__ import annotations

import configparser
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from fitb.cluster.process import Output, output_of
from fitb.tools.doctor import gpu, interpreter
from fitb.tools.doctor.check import Check, exit_code, hidden, render, secrets_of
from fitb.tools.doctor.deadlines import together
from fitb.tools.doctor.gpu import Build, Driver

ROOT = Path(__file__).resolve().parents[4]
H100 = ("NVIDIA H100 80GB HBM3",) * 8


def test_the_worst_line_decides_the_exit_code_and_what_is_skipped_is_fine():
    many = ["", "ok skipped", "ok warn skipped", "warn bad ok"]
    codes = [exit_code(Check(s, "x", "y") for s in each.split()) for each in many]
    assert codes == [0, 0, 1, 2]


def test_a_page_has_one_line_per_check():
    checks = [Check("ok", "a", "fine"), Check("bad", "longer", "broken", "mend it")]
    lines = render(checks).splitlines()
    assert lines[1].split() == ["bad", "longer", "broken", "|", "fix:", "mend", "it"]
    assert lines[2] == "1 ok, 0 skipped, 0 warn, 1 bad" and len(lines) == 3


def test_secrets_of_the_environment_and_of_urls_leave_no_trace():
    env = {"WANDB_API_KEY": "0123456789abcdef", "HF_TOKEN": "hf_abcdefgh", "KEYBOARD": "qwertz"}
    said = "0123456789abcdef at\nhttps://me:pass@host/x, hf_abcdefgh, qwertz"
    shown = hidden(Check("bad", "a", said, said), secrets_of(env))
    assert shown.found == shown.fix == "*** at https://***@host/x, ***, qwertz"
    assert secrets_of({"SOME_TOKEN": "no", "PATH": "/usr/bin/elsewhere"}) == []  # too short


# -- commands


def test_a_command_that_sleeps_is_ended_together_with_its_children(tmp_path):
    pid = tmp_path / "pid"
    answer = output_of("/bin/sh", "-c", f"sleep 60 & echo $! > {pid}; wait", timeout_s=1.0)
    assert answer.problem.endswith("gave no answer in 1 s")
    child = Path("/proc", pid.read_text().strip(), "stat")
    deadline = time.monotonic() + 10
    while child.exists() and ") Z " not in child.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.exists() or ") Z " in child.read_text()


def test_a_command_that_is_missing_or_fails_says_so():
    assert output_of("no-such-command-here", timeout_s=3).missing
    failed = output_of("/bin/sh", "-c", "echo half; echo why >&2; exit 3", timeout_s=3)
    assert (failed.text, failed.ok) == ("half\n", False)
    assert failed.problem.endswith("ended with 3: why")


def test_calls_that_are_late_or_raise_leave_the_others_alone():
    never = threading.Event()
    found = together({"late": never.wait, "broken": lambda: int("no"), "good": lambda: 7}, 0.3)
    assert found["good"] == 7
    assert isinstance(found["late"], TimeoutError) and isinstance(found["broken"], ValueError)
    never.set()


# -- packages


def test_all_packages_that_are_wrong_are_told_with_one_command():
    held = {"a": "1.0", "b": "2.0", "d": interpreter.UNREADABLE}
    lines = ["a>=2", "b>=1,<3", "c[x]>=4", "d", 'e; extra == "dev"', 'f; python_version < "3"']
    check = interpreter.requirements(lines, held.get)
    assert check.status == "bad"
    assert check.found == "3 of 4: a 1.0, expected >=2, c is missing, d has damaged metadata"
    words = "-m pip install --ignore-installed 'a>=2' 'c[x]>=4' d"
    assert check.fix == f"{sys.executable} {words}"


@pytest.mark.parametrize(
    ("check", "status", "fix"),
    [
        (interpreter.requirements(["torch>=2.10"], {"torch": "2.13.0+cpu"}.get), "ok", ""),
        (interpreter.python_version("3.11.2", ">=3.10"), "ok", ""),
        (interpreter.python_version("3.9.18", ">=3.10"), "bad", "make install PYTHON="),
        (interpreter.interpreter("/v/bin/python3", "/v/bin/python", named=False), "ok", ""),
        (
            interpreter.interpreter("/v/bin/python3", "/usr/bin/python", named=False),
            "warn",
            "export FITB_PYTHON=/v/bin/python3",
        ),
        (
            interpreter.interpreter("/v/bin/python3", "/w/bin/python", named=True),
            "warn",
            "/w/bin/python -m fitb doctor",
        ),
        (interpreter.interpreter("/v/bin/python3", None, named=False), "bad", "FITB_PYTHON"),
        (interpreter.compiler("/usr/bin/gcc"), "ok", ""),
        (interpreter.compiler(None), "warn", "--speed.compile false"),
    ],
)
def test_python_its_packages_and_the_compiler_are_held_against_what_fitb_asks_for(
    check, status, fix
):
    assert check.status == status
    assert fix in check.fix and bool(fix) == bool(check.fix)


def test_requirements_that_the_doctor_repeats_are_those_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split("\n")
    assert gpu._TORCH in lines
    assert "transformers>=5.17,<6" in lines  # of fitb.tools.doctor.models


# -- torch and the driver


def test_the_build_of_torch_is_read_without_running_it():
    version = torch.version
    assert gpu.installed_build() == Build(version.__version__, version.cuda, version.hip)


def test_the_driver_is_read_from_two_pages_of_nvidia_smi():
    page = "| NVIDIA-SMI 550.54.15      Driver Version: 550.54.15      CUDA Version: 12.4     |"
    names = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)\n  MIG 1g.5gb Device 0: (UUID: MIG-2)\n"
    expected = Driver("550.54.15", "12.4", ("NVIDIA A100-SXM4-40GB",))
    assert gpu.parse_driver(page, names) == expected
    assert gpu.parse_driver(page, "") is None


@pytest.mark.parametrize(
    ("build", "driver_cuda", "status", "fix"),
    [
        ("13.0", "13.0", "ok", ""),
        ("12.6", "13.0", "ok", ""),
        ("12.6", "12.2", "ok", ""),  # one driver of a major version runs all of its minor ones
        ("12.8", "12.4", "warn", "whl/cu126"),
        ("13.0", "12.8", "bad", "whl/cu126"),
        ("12.6", "11.4", "bad", "driver 525 or newer"),
        ("cpu", "13.1", "bad", "whl/cu130"),
        ("cpu", "12.2", "bad", "whl/cu126"),
        # Of a login node without a GPU, where hosts of the partition have eight.
        ("cpu", None, "warn", "whl/cu130"),
        ("13.0", None, "ok", ""),
        (None, None, "skipped", ""),
    ],
)
def test_torch_is_held_against_what_the_driver_runs(build, driver_cuda, status, fix):
    ours = build and Build("2.13.0", None if build == "cpu" else build, None)
    driver = driver_cuda and Driver("1.2", driver_cuda, H100)
    check = gpu.torch_and_driver(ours, driver, 8)
    assert check.status == status
    assert fix in check.fix and bool(check.fix) == bool(fix)
    assert driver is None or "8 x NVIDIA H100" in check.found
    assert gpu.torch_and_driver(Build("2.13.0+cpu", None, None), None, 0).status == "ok"


def test_a_driver_that_does_not_answer_is_told():
    assert gpu.smi_check(Output("", "nvidia-smi is not on PATH", missing=True), False) is None
    late = Output("", "`nvidia-smi` gave no answer in 4 s")
    broken = Output("", "`nvidia-smi` ended with 9: couldn't communicate with the NVIDIA driver")
    found = [gpu.smi_check(a, there) for a in (late, broken) for there in (False, True)]
    assert [check and check.status for check in found] == ["warn", "bad", "ok", "bad"]
