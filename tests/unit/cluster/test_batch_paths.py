"""A user's paths in the batch scripts and beside them: never a pattern, never a word of a shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from batching import FINISH, ROOT, Batch

from fitb.cluster import preflight
from fitb.cluster.executor import JOB, STARTED, WRITABLE, make_executor, resource_parser
from fitb.config import Config
from fitb.errors import ConfigError
from fitb.fsio import read_json

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
TRAIN = """#!/usr/bin/env bash
[[ "$1 $2 $3" == "-m fitb train" ]] || exec {python} "$@"
echo "trained in ${{@: -1}}"
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def trained(batch: Batch) -> Batch:
    """A batch whose tasks run."""
    python = script(batch.folder / "python", TRAIN.format(python=sys.executable) + FINISH)
    batch.env["FITB_PYTHON"] = str(python)
    script(batch.folder / "scancel", '#!/bin/sh\necho "$*" >>"$FAKE/scancel.calls"\n')
    script(batch.folder / "sleep", "#!/bin/sh\n")
    return batch


@pytest.mark.parametrize("absolute", [False, True])
def test_log_of_a_task_lies_under_a_run_folder_of_any_name(trained: Batch, absolute: bool) -> None:
    name = f"{trained.folder}/{ODD} " if absolute else f" {ODD}"
    code, output = trained.run(SRUN, "--run_dir", name)
    assert code == 0, output
    folder = trained.folder / name
    assert (folder / "logs" / "7.0.out").read_text() == f"trained in {name}\n"
    assert read_json(folder / "done.json")["exit_code"] == 0
    assert {path.name for path in folder.iterdir()} == {"logs", "events.jsonl", "done.json"}


def test_run_folder_of_two_lines_is_refused_before_any_task(trained: Batch) -> None:
    code, output = trained.run(SRUN, "--run_dir", "a\nb")
    assert (code, (trained.folder / "srun.ready").exists()) == (93, False)
    assert "run_dir='a\\nb'" in output


def test_logs_that_cannot_be_written_are_a_crash_with_the_hosts_name_and_the_chain_goes_on(
    trained: Batch,
) -> None:
    run_dir = trained.folder / "run"
    in_the_way = run_dir / "logs" / "7.0.out"
    in_the_way.mkdir(parents=True)
    code, output = trained.run(SRUN, "--run_dir", str(run_dir), FITB_CHAIN="mine")
    assert code == 85, output
    assert f"fitb: h3 cannot write {in_the_way}: Is a directory" in output
    assert (trained.folder / "scancel.calls").read_text() == "--signal=KILL 7.5\n"
    assert not (run_dir / "done.json").exists()
    (event,) = map(json.loads, (run_dir / "events.jsonl").read_text().splitlines())
    assert (event["event"], event["stalled"], event["exit_code"]) == ("requeue", 1, 1)
    assert "h[3-4]" in event["reason"]
    link = trained.run(SRUN, "--run_dir", str(run_dir), FITB_CHAIN="mine", SLURM_JOB_ID="8")
    assert link[0] == 0, link[1]
    assert read_json(run_dir / "done.json")["exit_code"] == 0


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED"])
def test_job_of_which_srun_started_nothing_is_requeued_unless_slurm_ends_it(
    batch: Batch, state: str
) -> None:
    code, output = batch.run("echo srun: error: launch failed; exit 0", FAKE_STATE=state)
    assert code == 85
    assert "launch failed" in output and "no attempt began on h[3-4]" in output
    assert batch.requeues() == (state == "RUNNING")
    assert not (batch.folder / "runs" / "mine" / "done.json").exists()


@pytest.mark.parametrize(
    ("srun", "code"), [("exit 0", 1), ("echo table", 0), ("echo half; exit 3", 3), ("exit 4", 4)]
)
def test_evaluation_of_several_tasks_without_a_result_fails(
    tmp_path: Path, srun: str, code: int
) -> None:
    script(tmp_path / "srun", f"#!/bin/sh\n{srun}\n")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_NTASKS": "2", "FITB_PYTHON": "mine"}
    command = ["bash", str(ROOT / "slurm" / "evaluate.sh"), "--out", "a b"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("no task with a result" in done.stderr) == (srun == "exit 0")


@pytest.mark.parametrize(
    ("code", "result", "given", "ended"),
    [(0, True, None, 0), (0, False, "0", 85), (1, False, None, 1), (255, True, None, 255)],
)
def test_submitit_job_whose_first_task_left_no_result_is_decided_by_its_script(
    tmp_path: Path, code: int, result: bool, given: str | None, ended: int
) -> None:
    if result:
        (tmp_path / "7_3_0_result.pkl").touch()
    decide = f"decide() {{ echo $1 >'{tmp_path}/given'; return 85; }}"
    lines = [JOB, decide, f"logs='{tmp_path}'", f"(exit {code})", *STARTED]
    env = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    done = subprocess.run(["bash", "-c", "\n".join(lines)], env=env, check=False)
    assert done.returncode == ended
    found = tmp_path / "given"
    assert (found.read_text().strip() if found.exists() else None) == given


def test_submitit_tasks_do_not_start_where_a_host_cannot_write_their_logs(tmp_path: Path) -> None:
    script(tmp_path / "srun", '#!/bin/bash\nshift 2\nSLURMD_NODENAME=h3 "$@"\n')
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NUM_NODES": "2"}
    for logs, code in ((f"{tmp_path}", 0), (f"{tmp_path}/none 'x'", 7)):
        lines = ['logs="$1"', WRITABLE, "exit 7", "}"]
        command = ["bash", "-c", "\n".join(lines), "bash", logs]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert done.stderr == (f"fitb: h3 cannot write {logs}\n" if code else "")


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, name: str, taken: bool
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("FITB_SITE", "/dev/null")
    script(tmp_path / "srun", "#!/bin/sh\n")
    where = resource_parser("test").parse_args(["--cluster", cluster])
    if taken:
        assert make_executor(where, tmp_path / name / "logs").folder == tmp_path / name / "logs"
    else:
        with pytest.raises(ConfigError, match="sbatch slurm/distill.sh"):
            make_executor(where, tmp_path / name / "logs")


def test_words_of_srun_about_a_host_of_the_preflight_lie_under_a_run_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    script(tmp_path / "srun", "#!/bin/bash\nprintf '%s\\n' \"$@\"\nexit 85\n")
    folder = tmp_path / ODD
    folder.mkdir()
    assert preflight.ask_hosts(["h1", "h2"], folder, Config(run_dir="r"), {})
    for host in ("h1", "h2"):
        words = (folder / f"{host}.out").read_text().splitlines()
        assert f"--nodelist={host}" in words and str(folder) in words
        assert not [word for word in words if word.startswith("--output")]
