"""slurm/site.env as the fronts read it, and the submission that follows."""

from __future__ import annotations

import os
from unittest import mock

import pytest
from batching import site
from executable import executable, ran

from fitb.base.errors import ConfigError
from fitb.cluster.executor import JOB, REQUEUE, SHOW_JOB, make_executor, resource_parser, script_of
from fitb.cluster.local import MALLOC_KEEPS
from fitb.cluster.site_env import enter, read_site, site_file
from fitb.cluster.submit import plan_distill, submit_distill

PATH = os.environ["PATH"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm that keeps the last script that it was given, and the environment of sbatch."""
    executable(tmp_path / "srun", "exit 0")
    executable(
        tmp_path / "sbatch", f'cp "$1" "{tmp_path}/script"; env >"{tmp_path}/env"; echo job 7'
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{PATH}")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "FITB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ):  # which a front changes
        yield tmp_path


def where(*flags, **more):
    arguments = resource_parser("test").parse_args(["--cluster", "slurm", *flags])
    vars(arguments).update(more)
    return arguments


def test_file_is_read_as_bash_reads_it(tmp_path):
    path = site(
        tmp_path,
        "echo loading modules\n"
        "export SBATCH_ACCOUNT='two words' HF_HOME=$HOME/hf\n"
        'export SBATCH_COMMENT="line\nline"\n'
        "unexported=1\nexport SAME=1\n"
        "[ -n '' ] && export NEVER=1\n",
    )
    found = read_site(path, {"PATH": PATH, "HOME": "/h", "SAME": "1"})
    assert {name: found[name] for name in found if name not in ("PWD", "SHLVL", "_")} == {
        "SBATCH_ACCOUNT": "two words",
        "HF_HOME": "/h/hf",
        "SBATCH_COMMENT": "line\nline",
    }
    path.write_text("export X='\n")
    with pytest.raises(ConfigError, match=r"site\.env: bash ended with .*file"):
        read_site(path, os.environ)


def test_file_is_the_named_one_or_the_one_below(tmp_path):
    assert site_file({}, tmp_path) is None
    path = site(tmp_path, "")
    assert site_file({}, tmp_path) == path
    other = tmp_path / "mine"
    other.touch()
    assert site_file({"FITB_SITE": str(other)}, tmp_path) == other
    assert site_file({"FITB_SITE": os.devnull}, tmp_path) is None
    with pytest.raises(ConfigError, match="FITB_SITE"):
        site_file({"FITB_SITE": str(tmp_path / "none")}, tmp_path)


def test_flags_win_over_the_shell_and_the_shell_over_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site(
        tmp_path,
        "export SBATCH_ACCOUNT=file SBATCH_QOS=file SBATCH_PARTITION=file OMP_NUM_THREADS=3\n",
    )
    env = {"PATH": PATH, "SBATCH_QOS": "shell"}
    enter(env, {"SBATCH_PARTITION": "flag", "SBATCH_ACCOUNT": None})
    assert env == {
        "PATH": PATH,
        "SBATCH_QOS": "shell",
        "SBATCH_ACCOUNT": "file",
        "FITB_SITE": str(tmp_path / "slurm" / "site.env"),
    }


def test_without_a_file_nothing_changes(slurm):
    before = dict(os.environ)
    text = script_of(make_executor(where(), slurm / "logs"))
    assert dict(os.environ) == before
    assert "site.env" not in text and "apptainer" not in text


@pytest.mark.parametrize("flags", [[], ["--tasks_per_node", "3", "--cpus_per_task", "2"]])
@pytest.mark.parametrize("torchrun", [False, True])
def test_dry_run_prints_the_script_to_the_letter_and_writes_nothing(slurm, flags, torchrun):
    site(slurm, "export SBATCH_ACCOUNT=mine\n")
    training = ["--run_dir", str(slurm / "run"), "--steps", "5"]
    arguments = where(*flags, torchrun=torchrun)
    shown = plan_distill(training, arguments).render()
    assert not (slurm / "run").exists()
    jobs, _ = submit_distill(training, arguments)
    submitted = (slurm / "script").read_text().rstrip()
    (written,) = (slurm / "run" / "logs").glob("launch-*.yaml")
    assert shown == f"{submitted}\n\n# -- {written}\n{written.read_text()}"
    assert jobs[0].job_id == "7"
    assert "SBATCH_ACCOUNT=mine\n" in (slurm / "env").read_text()
    assert f". {slurm}/slurm/site.env\n" in submitted


@pytest.mark.parametrize(("asked", "given"), [(True, ""), (None, "torchrun")])
def test_torchrun_is_one_task_a_host_with_the_cores_of_all_its_ranks(slurm, asked, given):
    site(slurm, f"export FITB_LAUNCHER={given}\n")  # the site may ask for it
    flags = ("--tasks_per_node", "3", "--cpus_per_task", "2")
    planned = plan_distill([], where(*flags, torchrun=asked))
    assert planned.task.processes == 3
    lines = planned.render().splitlines()
    assert {"#SBATCH --ntasks-per-node=1", "#SBATCH --cpus-per-task=6"} <= set(lines)
    assert "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}" in lines
    for name, value in MALLOC_KEEPS.items():
        assert any(line.endswith(f"|| export {name}=${{{name}-{value}}}") for line in lines)
    assert plan_distill([], where(*flags, torchrun=False)).task.processes == 0


def test_container_holds_the_tasks_and_its_batch_script_requeues_what_left(slurm):
    site(slurm, "export FITB_APPTAINER='/my image.sif' FITB_APPTAINER_OPTIONS='--nv -B /data'\n")
    text = plan_distill([], where()).render()
    assert " apptainer exec --nv -B /data '/my image.sif' python -u -m submitit" in text
    assert all(line in text.splitlines() for line in REQUEUE)
    with pytest.raises(ConfigError, match="--preflight"):
        plan_distill([], where(preflight=True))


@pytest.mark.parametrize(
    ("code", "state", "calls"),
    [
        (85, "RUNNING", ["requeue 7"]),
        (85, "CANCELLED", []),
        (93, "RUNNING", []),
        (0, "RUNNING", []),
    ],
)
def test_batch_script_of_a_container_requeues_a_job_that_left_and_runs(
    tmp_path, code, state, calls
):
    log = tmp_path / "calls"
    log.touch()
    executable(
        tmp_path / "scontrol",
        f'[[ $1 == show ]] && echo "JobId=7 JobState={state} X=1" || echo "$*" >>"{log}"',
    )
    lines = [JOB, SHOW_JOB, f"(exit {code})", "", "# teardown", *REQUEUE]
    env = {"PATH": f"{tmp_path}:{PATH}", "SLURM_JOB_ID": "7"}
    ran("bash", "-c", "\n".join(lines), env=env, code=code)
    assert log.read_text().splitlines() == calls
