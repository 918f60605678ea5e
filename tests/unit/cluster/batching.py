"""A batch script in a shell of its own, with a Slurm that is written down."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from executable import executable

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
TIMEOUT_S = 60

# Notes its arguments and environment, then does what $FAKE_SRUN says; `srun true` asks the hosts.
SRUN = """\
[[ ${@: -1} != true ]] || exit "${FAKE_HOSTS:-0}"
echo "$MASTER_PORT" >>"$FAKE/srun.ports"
printf '%s\\n' "$@" >"$FAKE/srun.arguments"
env >"$FAKE/srun.env"
trap 'echo USR1 >>"$FAKE/srun.signals"' USR1
touch "$FAKE/srun.ready"
eval "$FAKE_SRUN"
"""
SCONTROL = """\
if [[ $1 == show ]]; then
  echo "JobId=7 JobState=${FAKE_STATE:-RUNNING} Reason=None EndTime=${FAKE_END:-Unknown}"
else
  echo "$*" >>"$FAKE/scontrol.calls"
  exit "${FAKE_REQUEUE:-0}"
fi
"""
# What a task leaves in the run folder, its last argument, when all steps are done.
FINISH = """printf '%s\\n' '{"event": "attempt"}' '{"event": "stop", "exit_code": 0}' \\
  >>"${@: -1}/events.jsonl"; exit 0"""
# What an attempt leaves that crashes, and one that has saved a step more than the one before.
CRASH = """echo '{"event": "attempt"}' >>"${@: -1}/events.jsonl"; exit 1"""
SAVE = 'mkdir -p "${@: -1}/checkpoints/step-000000$((FITB_START + 1))"; '
UNTIL_SIGNAL = "until [[ -s $FAKE/srun.signals ]]; do sleep 0.02; done; sleep 0.2; exit 85"


def site(folder: Path, text: str) -> Path:
    """Write the settings of a site, to be found in this folder."""
    (folder / "slurm").mkdir()
    path = folder / "slurm" / "site.env"
    path.write_text(text)
    return path


class Batch:
    """One run of slurm/distill.sh as Slurm would start it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            executable(folder / name, text)
        self.env = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FITB_PYTHON": sys.executable,
            "FITB_SITE": os.devnull,
            "FAKE": str(folder),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "mine",
            "SLURM_JOB_NODELIST": "h[3-4]",
        }

    def start(self, srun: str, *flags: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(ROOT / "slurm" / "distill.sh"), *flags],
            cwd=self.folder,
            env=self.env | {"FAKE_SRUN": srun} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, srun: str, *flags: str, **env: str) -> tuple[int, str]:
        """Return exit code and output."""
        with self.start(srun, *flags, **env) as process:
            output = process.communicate(timeout=TIMEOUT_S)[0]
        return process.returncode, output

    def wait_for(self, name: str, process: subprocess.Popen[str]) -> None:
        """Wait until a file of this name is there."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (self.folder / name).exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    def started(self) -> bool:
        """Whether tasks were started."""
        return (self.folder / "srun.ready").exists()

    def requeues(self) -> int:
        calls = self.folder / "scontrol.calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        assert set(lines) <= {"requeue 7"}
        return len(lines)

    def ports(self) -> list[int]:
        """Return the port of each start of the tasks."""
        return [int(line) for line in (self.folder / "srun.ports").read_text().splitlines()]

    def srun_arguments(self) -> list[str]:
        return (self.folder / "srun.arguments").read_text().splitlines()

    def srun_env(self) -> dict[str, str]:
        lines = (self.folder / "srun.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)
