"""slurm/*.sh under bash, with a Slurm of three small scripts on PATH."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batching import FINISH, ROOT, SCRIPTS, TIMEOUT_S, UNTIL_SIGNAL, Batch


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_is_executable_bash_that_shellcheck_accepts(script: Path) -> None:
    assert os.access(script, os.X_OK)
    checks = [["bash", "-n", str(script)]]
    if shutil.which("shellcheck"):
        checks.append(["shellcheck", str(script)])
    for check in checks:
        done = subprocess.run(check, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_finished_job_ends_with_0_and_is_not_requeued(batch: Batch) -> None:
    assert batch.run(FINISH)[0] == 0
    assert batch.requeues() == 0


def test_saved_job_is_requeued(batch: Batch) -> None:
    code, output = batch.run("exit 85")
    assert (code, batch.requeues()) == (85, 1)
    assert "left as asked" in output


def test_job_that_says_stop_ends_with_93_and_is_not_requeued(batch: Batch) -> None:
    code, output = batch.run("exit 93")
    assert (code, batch.requeues()) == (93, 0)
    assert "would not help" in output


def test_crash_is_requeued_twice_and_then_given_up(batch: Batch) -> None:
    codes = [batch.run("exit 1", "--run_dir", "here")[0] for _ in range(3)]
    assert codes == [85, 85, 93]
    assert batch.requeues() == 2
    lines = (batch.folder / "here" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["requeue", "requeue", "stop"]


def test_task_of_an_array_is_asked_about_and_requeued_as_itself(batch: Batch) -> None:
    """The last task of an array has the number of the whole: it never came back."""
    array = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    code, _ = batch.run("exit 85", "--run_dir", "here", **array)
    assert (code, batch.requeues()) == (85, 1)
    assert (batch.folder / "scontrol.calls").read_text() == "requeue 7_1\n"
    (event,) = map(json.loads, (batch.folder / "here" / "events.jsonl").read_text().splitlines())
    assert event["job"] == "7_1"


@pytest.mark.parametrize("script", ["distill", "evaluate"])
def test_tasks_get_what_the_script_exports_and_no_bounds_of_another_job(
    batch: Batch, script: str
) -> None:
    """sbatch --export=NONE has srun hand on nothing; a shell inside a job hands on its own."""
    left = {"SLURM_CPUS_PER_TASK": "3", "SLURM_MEM_PER_NODE": "2000", "SLURM_NTASKS": "2"}
    ambient = {
        "SLURM_EXPORT_ENV": "NONE",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_CPU_BIND_LIST": "0x1",
        "SLURM_MEM_PER_CPU": "1000",
    }
    where = ROOT / "slurm" / f"{script}.sh"
    env = batch.env | left | {"FAKE_SRUN": "exit 3"}
    own = {"SLURM_CPU_BIND": "cores"}
    for more, kept in ((ambient, {}), (own, own | {"SLURM_MEM_PER_NODE": "2000"})):
        subprocess.run(["bash", str(where)], cwd=batch.folder, env=env | more, check=False)
        seen = batch.srun_env()
        names = [name for name in (*ambient, "SLURM_MEM_PER_NODE") if name in seen]
        assert {name: seen[name] for name in names} == kept


def test_refused_requeue_is_said_and_seen_in_the_exit_code(batch: Batch) -> None:
    code, output = batch.run("exit 85", FAKE_REQUEUE="1")
    assert code == 85
    assert "the requeue was refused" in output
    assert "or a chain (see the head of slurm/distill.sh)" in output


def test_finished_run_starts_no_tasks_again(batch: Batch) -> None:
    assert batch.run(FINISH)[0] == 0
    (batch.folder / "srun.ready").unlink()
    code, output = batch.run("exit 0", SLURM_RESTART_COUNT="1")
    assert code == 0
    assert "nothing is left to do" in output
    assert not (batch.folder / "srun.ready").exists()


def test_chain_is_never_requeued_and_counts_over_its_jobs_until_it_stops(batch: Batch) -> None:
    def link(job: str, chain: str = "mine") -> tuple[int, str]:
        return batch.run("exit 1", SLURM_JOB_ID=job, FITB_CHAIN=chain)

    first = link("7")
    assert "the next link of chain mine goes on" in first[1]
    assert [first[0], link("8")[0], link("9")[0]] == [85, 85, 93]
    (batch.folder / "srun.ready").unlink()
    code, output = link("10")
    assert code == 93
    assert "this ends chain mine: submit again under another FITB_CHAIN" in output
    assert not (batch.folder / "srun.ready").exists()
    assert link("11", "other")[0] == 85
    assert batch.requeues() == 0


@pytest.mark.parametrize("code", [0, 1, 85, 93])
def test_attempt_that_slurm_started_again_elsewhere_writes_nothing_about_the_run(
    batch: Batch, code: int
) -> None:
    later = '{"event": "attempt", "attempt": 2, "job": "7", "restart": 1}'
    run_dir = batch.folder / "runs" / "mine"
    verdict, output = batch.run(
        f"echo '{later}' >>runs/mine/events.jsonl; exit {code}", FAKE_STATE="RUNNING"
    )
    assert verdict == 93
    assert "replaced by attempt 2 of job 7" in output
    assert (run_dir / "events.jsonl").read_text() == f"{later}\n"
    assert not (run_dir / "done.json").exists()
    assert batch.requeues() == 0


def test_job_that_goes_on_with_the_run_of_an_earlier_one_is_requeued(batch: Batch) -> None:
    run_dir = batch.folder / "runs" / "mine"
    run_dir.mkdir(parents=True)
    earlier = '{"event": "attempt", "attempt": 1, "job": "6", "restart": 4}\n'
    (run_dir / "events.jsonl").write_text(earlier)
    assert batch.run("exit 85")[0] == 85
    assert batch.requeues() == 1


@pytest.mark.parametrize("code", [85, 93])
def test_preflight_that_decided_starts_no_tasks_and_one_that_crashed_is_a_crash(
    batch: Batch, code: int
) -> None:
    python = batch.folder / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'[[ $2 != fitb.cluster.preflight ]] || exit $PREFLIGHT\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    asked = {"FITB_PREFLIGHT": "1", "FITB_PYTHON": str(python)}
    assert batch.run("exit 0", PREFLIGHT=str(code), **asked)[0] == code
    assert batch.requeues() == 0
    code, output = batch.run("exit 0", PREFLIGHT="1", **asked)
    assert (code, batch.requeues()) == (85, 1)
    assert "crashed with exit code 1" in output
    assert not (batch.folder / "srun.ready").exists()


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PENDING"])
def test_job_that_slurm_is_ending_is_left_alone(batch: Batch, state: str) -> None:
    code, output = batch.run("exit 85", FAKE_STATE=state)
    assert (code, batch.requeues()) == (85, 0)
    assert state in output
    assert not (batch.folder / "runs/mine/events.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda n: n.name)
def test_signal_goes_to_srun_as_usr1_and_the_exit_code_is_not_lost(
    batch: Batch, number: signal.Signals
) -> None:
    with batch.start(UNTIL_SIGNAL) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while not (batch.folder / "srun.ready").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        output = process.communicate(timeout=TIMEOUT_S)[0]
    assert (process.returncode, batch.requeues()) == (85, 1), output
    assert (batch.folder / "srun.signals").read_text() == "USR1\n"


def test_signal_before_the_tasks_began_requeues_without_starting_them(batch: Batch) -> None:
    slow = batch.folder / "slow-python"
    slow.write_text(
        "#!/usr/bin/env bash\n"
        '[[ $2 != fitb.cluster.slurm ]] || { touch "$FAKE/planning"; sleep 1; }\n'
        f'exec {sys.executable} "$@"\n'
    )
    slow.chmod(0o755)
    with batch.start("exit 0", FITB_PYTHON=str(slow)) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while not (batch.folder / "planning").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, batch.requeues()) == (85, 1)
    assert not (batch.folder / "srun.ready").exists()


def test_tasks_get_the_flags_the_run_directory_and_the_address(batch: Batch) -> None:
    flags = ["--run_dir=my runs/a b", "--track.name", "two words * $HOME"]
    assert batch.run(FINISH, *flags, RANK="3", WORLD_SIZE="9")[0] == 0
    arguments = batch.srun_arguments()
    begin = arguments.index(sys.executable)
    assert arguments[begin:] == [
        sys.executable, "-m", "fitb", "train", *flags, "--run_dir", "my runs/a b",
    ]  # fmt: skip
    assert "--kill-on-bad-exit=0" in arguments[:begin]
    assert not [word for word in arguments[:begin] if word.startswith(("--output", "--error"))]
    assert arguments[begin - 1] == "my runs/a b/logs"
    assert (batch.folder / "my runs/a b/logs").is_dir()
    env = batch.srun_env()
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("h3", "20007")
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & env.keys()


def test_without_a_run_directory_the_job_name_gives_one(batch: Batch) -> None:
    assert batch.run(FINISH)[0] == 0
    assert batch.srun_arguments()[-2:] == ["--run_dir", "runs/mine"]
    assert (batch.folder / "runs/mine/logs").is_dir()


def test_threads_follow_the_cores_of_a_task_unless_the_user_chose(batch: Batch) -> None:
    batch.run("exit 0", SLURM_CPUS_PER_TASK="6")
    env = batch.srun_env()
    assert (env["OMP_NUM_THREADS"], env["SRUN_CPUS_PER_TASK"]) == ("6", "6")
    batch.run("exit 0", SLURM_JOB_ID="8", SLURM_CPUS_PER_TASK="6", OMP_NUM_THREADS="2")
    assert batch.srun_env()["OMP_NUM_THREADS"] == "2"
    batch.run("exit 0", SLURM_JOB_ID="9")
    env = batch.srun_env()
    assert env["OMP_NUM_THREADS"] == "1"
    assert "SRUN_CPUS_PER_TASK" not in env


def test_unknown_flag_ends_with_93_before_any_task(batch: Batch) -> None:
    code, output = batch.run("exit 0", "--stepz", "3")
    assert (code, batch.requeues()) == (93, 0)
    assert "nearest: steps" in output
    assert not (batch.folder / "srun.ready").exists()


def test_missing_interpreter_ends_with_93(batch: Batch) -> None:
    code, output = batch.run("exit 0", FITB_PYTHON="no-such-python")
    assert code == 93
    assert "no-such-python" in output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("evaluate", ["5", "-m", "fitb", "evaluate"]),
        ("prepare", ["", "-m", "fitb", "launch.prepare", "--cluster", "slurm"]),
    ],
)
def test_single_task_script_becomes_its_command(
    tmp_path: Path, name: str, words: list[str]
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "${OMP_NUM_THREADS-}" "$@"\nexit 3\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / f"{name}.sh"), "--out", "a b"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "5"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout.splitlines() == [*words, "--out", "a b"]


def test_several_tasks_evaluate_under_srun(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "${SRUN_CPUS_PER_TASK-}" "$RANK" "$@"\n')
    srun.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / "evaluate.sh"), "--out", "a b"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_CPUS_PER_TASK": "5",
            "SLURM_NTASKS": "2",
            "RANK": "3",
            "FITB_PYTHON": "mine",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    words = ["--kill-on-bad-exit=1", "mine", "-m", "fitb", "evaluate", "--out", "a b"]
    assert done.stdout.splitlines() == ["5", "", *words]
