"""A user's paths in the batch scripts and beside them: never a pattern, never a word of a shell."""

from __future__ import annotations

import subprocess
import sys

import pytest
from batching import FINISH
from executable import executable, ran

from fitb.base.errors import ConfigError
from fitb.base.fsio import read_json
from fitb.cluster import preflight
from fitb.cluster.executor import (
    AGAIN,
    ENDED,
    JOB,
    LOOK_FOR_ROOM,
    SHOW_JOB,
    STARTS,
    WRITABLE,
    make_executor,
    resource_parser,
    script_of,
)
from fitb.config import Config

ODD = "drop=50%j warm é\\ [a]* it's $HOME `x` \"%t"

# Opens the logs that --output names and starts task 0, as srun 22.05 does: with 0 where it cannot.
SRUN = """
for word; do
  case $word in --output=*) out=${word#*=} ;; --*) ;; *) break ;; esac
  shift
done
if [[ -n ${out:-} ]]; then
  out=${out//%j/$SLURM_JOB_ID} out=${out//%t/0}
  { true >>"$out"; } 2>/dev/null || exit 0
  exec >>"$out"
fi
SLURM_PROCID=0 SLURM_STEP_ID=5 SLURMD_NODENAME=h3 "$@"
"""
# In place of `fitb train`: the last argument is the run folder.
TRAIN = """\
[[ "$1 $2 $3" == "-m fitb train" ]] || exec {python} "$@"
echo "trained in ${{@: -1}}"
"""


@pytest.fixture
def trained(batch):
    """A batch whose tasks run."""
    python = executable(batch.folder / "python", TRAIN.format(python=sys.executable) + FINISH)
    batch.env["FITB_PYTHON"] = str(python)
    return batch


@pytest.mark.parametrize("absolute", [False, True])
def test_log_of_a_task_lies_under_a_run_folder_of_any_name(trained, absolute):
    name = f"{trained.folder}/{ODD} " if absolute else f" {ODD}"
    code, output = trained.run(SRUN, "--run_dir", name)
    assert code == 0, output
    folder = trained.folder / name
    assert (folder / "logs" / "7.0.out").read_text() == f"trained in {name}\n"
    assert read_json(folder / "done.json")["exit_code"] == 0
    assert {path.name for path in folder.iterdir()} == {"logs", "events.jsonl", "done.json"}


@pytest.mark.parametrize(
    ("code", "result", "given", "ended"),
    [
        (0, True, None, 0),
        (0, False, "0", 85),
        (1, False, "1", 85),
        (85, False, None, 85),
        (255, True, None, 255),
    ],
)
def test_submitit_job_whose_first_task_left_no_result_is_decided_by_its_script(
    tmp_path, code, result, given, ended
):
    if result:
        (tmp_path / "7_3_0_result.pkl").touch()
    decide = f"decide() {{ echo $1 >'{tmp_path}/given'; return 85; }}"
    lines = [JOB, decide, f"logs='{tmp_path}'", f"(exit {code})", *ENDED, '(exit "$code")']
    env = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    ran("bash", "-c", "\n".join(lines), env=env, code=ended)
    found = tmp_path / "given"
    assert (found.read_text().strip() if found.exists() else None) == given


def test_submitit_tasks_do_not_start_where_a_host_cannot_write_their_logs(tmp_path):
    executable(tmp_path / "srun", 'shift 2\nSLURMD_NODENAME=h3 "$@"')
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NUM_NODES": "2"}
    for logs, code in ((f"{tmp_path}", 0), (f"{tmp_path}/none 'x'", 7)):
        lines = ['logs="$1"', WRITABLE, "exit 7", "}"]
        done = ran("bash", "-c", "\n".join(lines), "bash", logs, env=env, code=code)
        assert done.stderr == (f"fitb: h3 cannot write {logs}\n" if code else "")


@pytest.mark.parametrize(
    ("state", "end", "restarts", "starts", "room"),
    [
        ("RUNNING", "Unknown", 2, 3, ["999700", "999700", "0"]),
        ("RUNNING", "Unknown", 0, 1, ["0"]),
        ("RUNNING", "2026-01-01T00:00:00", 2, 1, ["0"]),
        ("CANCELLED", "Unknown", 2, 1, []),
    ],
)
def test_submitit_script_starts_the_tasks_again_while_there_is_room(
    tmp_path, state, end, restarts, starts, room
):
    executable(tmp_path / "scontrol", f"echo JobId=7 JobState={state} EndTime={end}")
    decide = 'look_for_room "$1"; echo $room >>"$logs/room"; ((room == 0)) && return 85; return 11'
    lines = ["job=7 FITB_LEAD_S=300", f"logs='{tmp_path}'", f"decide() {{ {decide}; }}"]
    lines += ["seen=0", SHOW_JOB, LOOK_FOR_ROOM.format(restarts=restarts), STARTS]
    lines += ['echo "$FITB_START" >>"$logs/starts"; (exit 3)', *ENDED, *AGAIN]
    code = 85 if state == "RUNNING" else 3
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ran("bash", "-c", "\n".join(lines), env=env, code=code)
    assert lines_of(tmp_path / "starts") == [str(start) for start in range(starts)]
    found = lines_of(tmp_path / "room")
    assert [abs(int(a) - int(b)) <= 60 for a, b in zip(found, room, strict=True)].count(False) == 0


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("cluster", "name", "taken"),
    [
        ("local", "top5%", True),
        ("local", "a%jb", False),
        ("local", "50%t", False),
        ("slurm", "top5%", False),
        ("slurm", "a\\b", False),
        ("slurm", "it's a [b]* é", True),
    ],
)
def test_folder_that_submitit_or_slurm_would_take_for_another_is_refused(
    tmp_path, monkeypatch, cluster, name, taken
):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("FITB_SITE", "/dev/null")
    executable(tmp_path / "srun", "printf '%s\\n' \"$@\"")
    where = resource_parser("test").parse_args(["--cluster", cluster])
    where.job_name = "a $(touch pwned)"
    folder = tmp_path / name / "logs"
    if not taken:
        with pytest.raises(ConfigError, match="sbatch slurm/distill.sh"):
            make_executor(where, folder)
        return
    executor = make_executor(where, folder)
    assert executor.folder == folder
    command = ["bash", "-c", script_of(executor)]
    words = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert cluster == "local" or str(folder) in words.stdout.splitlines()
    assert not (tmp_path / "pwned").exists()


def test_words_of_srun_about_a_host_of_the_preflight_lie_under_a_run_folder_of_any_name(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    executable(tmp_path / "srun", "printf '%s\\n' \"$@\" $SLURM_GPU_BIND\nexit 85")
    folder = tmp_path / ODD
    folder.mkdir()
    assert preflight.ask_hosts(["h1", "h2"], folder, Config(run_dir="r"), {})
    for host in ("h1", "h2"):
        words = (folder / f"{host}.out").read_text().splitlines()
        assert words.pop() == "none"  # one task checks all GPUs of its host
        assert f"--nodelist={host}" in words and str(folder) in words
        assert not [word for word in words if word.startswith("--output")]
