"""Commands forked from a process that has imported torch, transformers and DeepSpeed already.

A rank started by itself spends 7 CPU seconds on imports before it does anything, and the tests
start hundreds. A forked one is a process like any other: it has an id, a session, an environment
and an exit code of its own, takes signals and can be killed. What it does not show is the start of
an interpreter; tests/cluster starts every rank from its command.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

from job import TIMEOUT_S
from job import completed as started

from fitb.cluster.local import MALLOC_KEEPS

_MODULES = [
    "fitb.cli",
    "fitb.training.loop",
    "fitb.training.setup",
    "fitb.training.zero",
    "deepspeed",
]
# What DeepSpeed imports when it begins; the first sets torch.compile up, for a second and a half.
_MODULES += ["deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer"]
# Read when something happens, not when a library is imported; any other difference is for a rank
# that is started from its command.
_READ_LATE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_READ_LATE_PREFIXES = ("FITB_", "SLURM_", "WANDB_", "PYTEST_")
_THREADS = "OMP_NUM_THREADS"
_SPEED_ALONE = {_THREADS, *MALLOC_KEEPS}  # malloc keeps those of the server that forks
_COMMANDS = ("train", "evaluate", "compare", "export", "fill", "status")
_COMMANDS += ("prepare", "inspect", "report", "doctor", "bench")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_MODULES)


def can_fork(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether a command is one of these, or a program of these tests in place of `fitb train`, in
    this environment, but for what is read late."""
    differing = {k for k in env.keys() | os.environ.keys() if env.get(k) != os.environ.get(k)}
    late = {k for k in differing if k in _READ_LATE or k.startswith(_READ_LATE_PREFIXES)}
    ours = list(command[:3]) == [sys.executable, "-m", "fitb"] and command[3] in _COMMANDS
    ours = ours or (command[0] == sys.executable and command[1].endswith(".py"))
    return ours and differing - late <= _SPEED_ALONE


class Forked:
    """What LocalRun asks of a subprocess.Popen."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        output: IO[bytes] | None,
        errors: IO[bytes] | None = None,
    ) -> None:
        files = {1: output.fileno() if output else 1}
        files[2] = (errors or output).fileno() if errors or output else 2
        paths = {number: f"/proc/{os.getpid()}/fd/{file}" for number, file in files.items()}
        os.umask(umask := os.umask(0))
        arguments = (list(command[1:]), dict(env), os.getcwd(), umask, paths)
        self._process: Any = _context.Process(target=_run, args=arguments)
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("fitb train", timeout or 0.0)
        return code


def completed(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as job.completed does."""
    if not can_fork(command, env):
        return started(command, env)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        code = Forked(command, env, output, errors).wait(TIMEOUT_S)
        texts = [(file.seek(0), file.read().decode())[1] for file in (output, errors)]
    return subprocess.CompletedProcess(command, code, *texts)


def _run(
    words: list[str], env: dict[str, str], folder: str, umask: int, outputs: dict[int, str]
) -> None:
    """What the interpreter does with these words, in this process."""
    os.setsid()
    os.umask(umask)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in outputs.items():
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    import torch

    torch.set_num_threads(int(env[_THREADS]))
    if words[0] == "-m":
        from fitb.cli import main

        sys.argv = ["fitb", *words[2:]]
        code = main(words[2:])
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(words[0]))
        code = _exit_code_of(words[0])
    atexit._run_exitfuncs()
    sys.exit(code)


def _exit_code_of(program: str) -> int:
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0
