"""slurm/*.sh under bash, with a Slurm of three small scripts on PATH."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys

import pytest
from batching import CRASH, FINISH, ROOT, SAVE, SCRIPTS, TIMEOUT_S, UNTIL_SIGNAL, site
from executable import executable, ran

from fitb.base.fsio import read_lines
from fitb.base.signals import PREEMPTION, TIME_LIMIT, slurm_name
from fitb.cluster.local import MALLOC_KEEPS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_is_executable_bash_that_shellcheck_accepts(script):
    assert os.access(script, os.X_OK)
    told = f"#SBATCH --signal=B:{slurm_name(TIME_LIMIT)}@300\n"
    assert (told in script.read_text()) == (script.name in ("distill.sh", "sweep.sh"))
    checks = [["bash", "-n", str(script)]]
    if shutil.which("shellcheck"):
        checks.append(["shellcheck", str(script)])
    for check in checks:
        ran(*check)


@pytest.mark.parametrize(
    ("srun", "env", "code", "requeues", "said"),
    [
        (FINISH, {}, 0, 0, ""),
        ("exit 85", {}, 85, 1, "shut down as requested"),
        ("exit 85", {"FAKE_REQUEUE": "1"}, 85, 1, "or a chain (see the head of slurm/distill.sh)"),
        ("exit 85", {"FAKE_STATE": "CANCELLED"}, 85, 0, "CANCELLED"),
        ("exit 85", {"FAKE_STATE": "COMPLETING"}, 85, 0, "COMPLETING"),
        ("exit 93", {}, 93, 0, "would not help"),
        ("exit 1", {}, 85, 1, "crashed with exit code 1"),
        ("echo srun: launch failed; exit 0", {}, 85, 1, "no attempt began on h[3-4]"),
        ("exit 0", {"FAKE_STATE": "CANCELLED"}, 85, 0, "no attempt began on h[3-4]"),
    ],
)
def test_job_ends_and_is_requeued_by_the_exit_code_of_its_tasks(
    batch, srun, env, code, requeues, said
):
    ended, output = batch.run(srun, **env)
    assert (ended, batch.requeues()) == (code, requeues), output
    assert said in output
    assert batch.srun_arguments()[-2:] == ["--run_dir", "runs/mine"]
    run_dir = batch.folder / "runs" / "mine"
    assert (run_dir / "done.json").exists() == (code != 85)
    if said in ("CANCELLED", "COMPLETING"):  # what Slurm ends is left alone
        assert not (run_dir / "events.jsonl").exists()


SOON = "in seven minutes"


@pytest.mark.parametrize(
    ("srun", "flags", "env", "ports", "ended"),
    [
        pytest.param(CRASH, [], {}, 2, 85, id="no progress: here once, then by the queue"),
        pytest.param(SAVE + CRASH, ["--stop.restarts", "1"], {}, 2, 85, id="as often as allowed"),
        pytest.param(
            f"((FITB_START)) || {{ {SAVE + CRASH}; }}; {FINISH}", [], {}, 2, 0, id="and ends well"
        ),
        pytest.param(SAVE + CRASH, ["--stop.restarts", "0"], {}, 1, 85, id="never"),
        pytest.param(SAVE + CRASH, [], {"FAKE_HOSTS": "1"}, 1, 85, id="a host does not answer"),
        pytest.param(SAVE + CRASH, [], {"FAKE_END": SOON}, 1, 85, id="too late for a start"),
        pytest.param(
            SAVE + CRASH,
            ["--stop.restarts", "1"],
            {"FAKE_END": SOON, "FITB_LEAD_S": "30"},
            2,
            85,
            id="time enough before a shorter warning",
        ),
    ],
)
def test_crash_starts_the_tasks_again_in_the_same_job_if_its_hosts_are_well_and_time_is_left(
    batch, srun, flags, env, ports, ended
):
    if "FAKE_END" in env:
        end = datetime.datetime.now() + datetime.timedelta(minutes=7)
        env = env | {"FAKE_END": end.isoformat(timespec="seconds")}
    code, output = batch.run(srun, *flags, **env)
    assert (code, batch.requeues()) == (ended, int(ended == 85)), output
    assert len(batch.ports()) == len(set(batch.ports())) == ports
    events = list(read_lines(batch.folder / "runs" / "mine" / "events.jsonl"))
    decided = [event["event"] for event in events if "stalled" in event]
    assert decided == ["restart"] * (ports - 1) + ["requeue"] * (ended == 85)


def test_plan_of_a_job_begins_with_the_four_lines_that_earlier_scripts_read(batch):
    """Slurm keeps the script of a queued job, whatever version runs when it starts."""
    command = [sys.executable, "-m", "fitb.cluster.slurm", "--steps", "3"]
    lines = ran(*command, env=batch.env, cwd=batch.folder).stdout.splitlines()
    assert lines[:2] == ["runs/mine", "h3"] and lines[3] == "0"
    assert lines[2] == lines[4].split()[0] == "20007"


@pytest.mark.parametrize("beside", [True, False])
def test_task_of_a_sweep_becomes_the_script_beside_the_one_that_was_submitted(batch, beside):
    folder = batch.folder / ("kept" if beside else "slurm")
    folder.mkdir()
    executable(folder / "distill.sh", 'printf "%s\\n" "$@" >"$FAKE/flags"; exit 7')
    executable(batch.folder / "scontrol", f"echo JobId=7 Command={batch.folder}/kept/sweep.sh")
    spool = batch.folder / "slurm_script"
    shutil.copy(ROOT / "slurm" / "sweep.sh", spool)
    words = ["--grid.track.name", "['a b', c]", "--run_dir", "s", "--steps", "3"]
    env = batch.env | {"SLURM_ARRAY_TASK_ID": "0", "SLURM_SUBMIT_DIR": str(batch.folder)}
    done = ran("bash", str(spool), *words, env=env, cwd=batch.folder, code=7)
    flags = (batch.folder / "flags").read_text().splitlines()
    assert flags == ["--run_dir", "s/000-name=a_b", "--track.group", "s", *words[4:]] + [
        "--track.name",
        "a b",
    ], done.stderr
    for missing in ({"SLURM_ARRAY_TASK_ID": "2"}, {"SLURM_ARRAY_TASK_ID": ""}):
        ran("bash", str(spool), *words, env=env | missing, cwd=batch.folder, code=93)


def test_crash_after_a_stop_signal_is_left_to_the_queue(batch):
    crash = UNTIL_SIGNAL.replace("exit 85", SAVE + CRASH)
    with batch.start(crash) as process:
        batch.wait_for("srun.ready", process)
        process.send_signal(TIME_LIMIT)
        output = process.communicate(timeout=TIMEOUT_S)[0]
    assert (process.returncode, batch.requeues(), len(batch.ports())) == (85, 1, 1), output


@pytest.mark.parametrize(
    ("flags", "env", "said"),
    [
        (["--stepz", "3"], {}, "nearest: steps"),
        (["--run_dir", "a\nb"], {}, "run_dir='a\\nb'"),
        ([], {"FITB_PYTHON": "no-such-python"}, "no-such-python"),
        ([], {"FITB_LAUNCHER": "torchran"}, "expected srun or torchrun"),
        (["--stepz", "3"], {"FITB_SITE": "gone"}, "FITB_SITE=gone cannot"),
        ([], {"FITB_LEAD_S": "5m"}, "FITB_LEAD_S=5m; expected the seconds"),
    ],
)
def test_what_cannot_run_ends_with_93_before_any_task(batch, flags, env, said):
    code, output = batch.run("exit 0", *flags, **env)
    assert (code, batch.requeues(), batch.started()) == (93, 0, False)
    assert said in output


@pytest.mark.parametrize("script", ["distill", "evaluate"])
def test_tasks_get_what_the_script_exports_and_no_bounds_of_another_job(batch, script):
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


def test_chain_is_never_requeued_and_counts_over_its_jobs_until_it_stops_or_is_finished(batch):
    def link(job, chain="mine", srun="exit 1"):
        return batch.run(srun, SLURM_JOB_ID=job, FITB_CHAIN=chain)

    def over(job, chain):
        (batch.folder / "srun.ready").unlink()
        code, output = link(job, chain)
        assert not batch.started()
        return code, output

    first = link("7")
    assert "the next link of chain mine goes on" in first[1]
    assert [first[0], link("8")[0], link("9")[0]] == [85, 85, 93]
    code, output = over("10", "mine")
    assert code == 93 and "submit again under another FITB_CHAIN" in output
    assert link("11", "other")[0] == 85
    assert link("12", "other", FINISH)[0] == 0
    assert over("13", "other")[0] == 0
    assert batch.requeues() == 0


@pytest.mark.parametrize("code", [85, 93])
def test_preflight_that_decided_starts_no_tasks_and_one_that_crashed_is_a_crash(batch, code):
    preflight = "[[ $2 != fitb.cluster.preflight ]] || exit $PREFLIGHT"
    python = executable(batch.folder / "python", f'{preflight}\nexec {sys.executable} "$@"')
    asked = {"FITB_PREFLIGHT": "1", "FITB_PYTHON": str(python)}
    assert batch.run("exit 0", PREFLIGHT=str(code), **asked)[0] == code
    assert batch.requeues() == 0
    code, output = batch.run("exit 0", PREFLIGHT="1", **asked)
    assert (code, batch.requeues(), batch.started()) == (85, 1, False)
    assert "crashed with exit code 1" in output


@pytest.mark.parametrize("asked", [{}, {"FITB_EXCLUDE_SLOW": "1"}])
def test_slow_hosts_are_excluded_after_the_requeue_if_asked(batch, asked):
    noted = 'cp "$FAKE/scontrol.calls" "$FAKE/excluding"'
    exclusion = f"[[ $2 != fitb.cluster.exclusion ]] || {{ {noted}; exit 0; }}"
    python = executable(batch.folder / "python", f'{exclusion}\nexec {sys.executable} "$@"')
    assert batch.run("exit 85", FITB_PYTHON=str(python), **asked)[0] == 85
    found = batch.folder / "excluding"
    assert (found.read_text() if found.exists() else "") == ("requeue 7\n" if asked else "")


@pytest.mark.parametrize("number", [TIME_LIMIT, PREEMPTION], ids=lambda n: n.name)
def test_signal_goes_to_srun_as_usr1_and_the_exit_code_is_not_lost(batch, number):
    with batch.start(UNTIL_SIGNAL) as process:
        batch.wait_for("srun.ready", process)
        process.send_signal(number)
        output = process.communicate(timeout=TIMEOUT_S)[0]
    assert (process.returncode, batch.requeues()) == (85, 1), output
    assert (batch.folder / "srun.signals").read_text() == f"{slurm_name(TIME_LIMIT)}\n"


def test_signal_before_the_tasks_began_requeues_without_starting_them(batch):
    plan = '[[ $2 != fitb.cluster.slurm ]] || { touch "$FAKE/planning"; sleep 1; }'
    slow = executable(batch.folder / "slow-python", f'{plan}\nexec {sys.executable} "$@"')
    with batch.start("exit 0", FITB_PYTHON=str(slow)) as process:
        batch.wait_for("planning", process)
        process.send_signal(TIME_LIMIT)
        process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, batch.requeues(), batch.started()) == (85, 1, False)


def test_tasks_get_the_flags_the_run_directory_and_the_address(batch):
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


def test_threads_follow_the_cores_of_a_task_unless_the_user_chose(batch):
    batch.run("exit 0", SLURM_CPUS_PER_TASK="6")
    env = batch.srun_env()
    assert (env["OMP_NUM_THREADS"], env["SRUN_CPUS_PER_TASK"]) == ("6", "6")
    assert MALLOC_KEEPS.items() <= env.items()
    batch.run("exit 0", SLURM_JOB_ID="8", SLURM_CPUS_PER_TASK="6", OMP_NUM_THREADS="2")
    assert batch.srun_env()["OMP_NUM_THREADS"] == "2"
    batch.run("exit 0", SLURM_JOB_ID="9")
    env = batch.srun_env()
    assert env["OMP_NUM_THREADS"] == "1" and "SRUN_CPUS_PER_TASK" not in env
    batch.run("exit 0", SLURM_JOB_ID="10", SLURM_GPUS_ON_NODE="2")
    assert not MALLOC_KEEPS.keys() & batch.srun_env().keys()


EVALUATE = ["-m", "fitb", "evaluate", "--out", "a b"]
PREPARE = ["-m", "fitb", "launch.prepare", "--cluster", "slurm", "--out", "a b"]
TASKS = {"SLURM_NTASKS": "2", "RANK": "3", "FITB_PYTHON": "mine"}


@pytest.mark.parametrize(
    ("name", "env", "ending", "code", "words"),
    [
        ("evaluate", {}, "exit 3", 3, ["5", "", *EVALUATE]),
        ("prepare", {}, "exit 3", 3, ["", "", *PREPARE]),
        ("evaluate", TASKS, "", 0, ["5", "", "--kill-on-bad-exit=1", "mine", *EVALUATE]),
        ("evaluate", TASKS, "exit 4", 4, ["5", "", "--kill-on-bad-exit=1", "mine", *EVALUATE]),
        ("evaluate", TASKS, "silent", 1, []),  # srun has started nothing
    ],
)
def test_script_becomes_its_command_or_starts_several_tasks_of_which_one_must_speak(
    tmp_path, name, env, ending, code, words
):
    show = 'printf "%s\\n" "${OMP_NUM_THREADS-}" "${RANK-}" "$@"'
    for command in ("python", "srun"):
        executable(tmp_path / command, "exit 0" if ending == "silent" else f"{show}\n{ending}")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "5"} | env
    done = ran("bash", ROOT / "slurm" / f"{name}.sh", "--out", "a b", env=env, code=code)
    assert done.stdout.splitlines() == words
    assert ("no task with a result" in done.stderr) == (ending == "silent")


def test_torchrun_is_one_task_a_host_and_starts_the_ranks_that_srun_would(batch):
    given = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "6", "SLURM_CPUS_PER_TASK": "4"}
    assert batch.run(FINISH, "--steps=3", FITB_LAUNCHER="torchrun", **given)[0] == 0
    arguments, env = batch.srun_arguments(), batch.srun_env()
    begin = arguments.index(sys.executable)
    words = ["-m", "fitb.training.torchrun", "--steps=3", "--run_dir", "runs/mine"]
    assert arguments[begin + 1 :] == words
    assert {"--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=12"} <= set(arguments[:begin])
    assert (env["FITB_PROCESSES_PER_NODE"], env["OMP_NUM_THREADS"]) == ("3", "4")
    more = given | {"FITB_LAUNCHER": "torchrun", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "8"}
    for asked, each, threads in (({}, "4", "3"), ({"FITB_PROCESSES_PER_NODE": "2"}, "2", "6")):
        batch.run("exit 0", **(more | asked))
        env = batch.srun_env()
        assert (env["FITB_PROCESSES_PER_NODE"], env["OMP_NUM_THREADS"]) == (each, threads)
        more["SLURM_JOB_ID"] = "9"


def test_job_reads_the_file_of_its_site(batch):
    text = "export HF_HOME=/scratch/hf OMP_NUM_THREADS=5\n[[ $# == 0 ]] || exit 1\necho $UNSET\n"
    site(batch.folder, text)
    del batch.env["FITB_SITE"]
    code, output = batch.run(FINISH, "--steps", "3")
    assert code == 0, output
    env = batch.srun_env()
    assert (env["HF_HOME"], env["OMP_NUM_THREADS"]) == ("/scratch/hf", "5")


def test_settings_that_came_too_late_for_sbatch_are_said(batch):
    path = site(batch.folder, "export SBATCH_ACCOUNT=mine\n")
    late = "fitb: sbatch has not seen SBATCH_ACCOUNT of"
    assert f"{late} {path}" in batch.run("exit 0", FITB_SITE=str(path))[1]
    seen = {"FITB_SITE": str(path), "SBATCH_ACCOUNT": "mine", "SLURM_JOB_ID": "8"}
    assert late not in batch.run("exit 0", **seen)[1]


@pytest.mark.parametrize("launcher", ["fitb", "fitb.training.torchrun"])
def test_everything_of_a_job_but_slurms_own_commands_runs_in_its_container(batch, launcher):
    executable(
        batch.folder / "apptainer",
        'printf "%s|" "$@" >>"$FAKE/container"; echo >>"$FAKE/container"\n'
        'until [[ $1 == *.sif ]]; do shift; done; shift; exec "$@"',
    )
    path = site(
        batch.folder,
        "export FITB_APPTAINER='/my image.sif' FITB_APPTAINER_OPTIONS='--nv --bind /data'"
        f" FITB_APPTAINER_PYTHON={sys.executable}\n",
    )
    more = {"FITB_LAUNCHER": "torchrun"} if launcher != "fitb" else {}
    code, output = batch.run("exit 85", "--steps", "3", FITB_SITE=str(path), **more)
    assert (code, batch.requeues()) == (85, 1), output
    words = ["apptainer", "exec", "--nv", "--bind", "/data", "/my image.sif", sys.executable]
    arguments = batch.srun_arguments()
    begin = arguments.index("apptainer")
    assert arguments[begin : begin + 9] == [*words, "-m", launcher]
    lines = (batch.folder / "container").read_text().splitlines()
    run = [line.split("|")[5:8] for line in lines]
    modules = ("fitb.cluster.slurm", "fitb.rundir.restart")
    assert run == [[sys.executable, "-m", module] for module in modules]
    code, output = batch.run("exit 0", FITB_PREFLIGHT="1", FITB_SITE=str(path))
    assert code == 93 and "FITB_APPTAINER" in output
