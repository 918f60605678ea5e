"""The batch scripts under torchrun, in a container, and with the settings of a site."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from batching import FINISH, Batch


def test_torchrun_is_one_task_a_host_and_starts_the_ranks_that_srun_would(batch: Batch) -> None:
    given = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "6", "SLURM_CPUS_PER_TASK": "4"}
    assert batch.run(FINISH, "--steps=3", FITB_LAUNCHER="torchrun", **given)[0] == 0
    arguments, env = batch.srun_arguments(), batch.srun_env()
    begin = arguments.index(sys.executable)
    words = ["-m", "fitb.train.torchrun", "--steps=3", "--run_dir", "runs/mine"]
    assert arguments[begin + 1 :] == words
    assert {"--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=12"} <= set(arguments[:begin])
    assert (env["FITB_PROCESSES_PER_NODE"], env["OMP_NUM_THREADS"]) == ("3", "4")
    more = given | {"SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "8"}
    batch.run("exit 0", FITB_LAUNCHER="torchrun", **more)
    env = batch.srun_env()
    assert (env["FITB_PROCESSES_PER_NODE"], env["OMP_NUM_THREADS"]) == ("4", "3")
    more |= {"FITB_PROCESSES_PER_NODE": "2", "SLURM_JOB_ID": "9"}
    batch.run("exit 0", FITB_LAUNCHER="torchrun", **more)
    env = batch.srun_env()
    assert (env["FITB_PROCESSES_PER_NODE"], env["OMP_NUM_THREADS"]) == ("2", "6")


def test_launcher_that_there_is_not_ends_with_93_before_any_task(batch: Batch) -> None:
    code, output = batch.run("exit 0", FITB_LAUNCHER="torchran")
    assert code == 93
    assert "FITB_LAUNCHER='torchran'; expected srun or torchrun" in output
    assert not (batch.folder / "srun.ready").exists()


def site(folder: Path, text: str) -> Path:
    (folder / "slurm").mkdir()
    path = folder / "slurm" / "site.env"
    path.write_text(text)
    return path


def test_job_reads_the_file_of_its_site(batch: Batch) -> None:
    text = "export HF_HOME=/scratch/hf OMP_NUM_THREADS=5\n[[ $# == 0 ]] || exit 1\necho $UNSET\n"
    site(batch.folder, text)
    del batch.env["FITB_SITE"]
    code, output = batch.run(FINISH, "--steps", "3")
    assert code == 0, output
    env = batch.srun_env()
    assert (env["HF_HOME"], env["OMP_NUM_THREADS"]) == ("/scratch/hf", "5")


def test_settings_that_came_too_late_for_sbatch_are_said(batch: Batch) -> None:
    path = site(batch.folder, "export SBATCH_ACCOUNT=mine\n")
    late = "fitb: sbatch has not seen SBATCH_ACCOUNT of"
    assert f"{late} {path}" in batch.run("exit 0", FITB_SITE=str(path))[1]
    seen = {"FITB_SITE": str(path), "SBATCH_ACCOUNT": "mine", "SLURM_JOB_ID": "8"}
    assert late not in batch.run("exit 0", **seen)[1]
    gone = str(batch.folder / "gone")
    assert f"FITB_SITE={gone} cannot" in batch.run("exit 0", "--stepz=1", FITB_SITE=gone)[1]


@pytest.mark.parametrize("launcher", ["fitb", "fitb.train.torchrun"])
def test_everything_of_a_job_but_slurms_own_commands_runs_in_its_container(
    batch: Batch, launcher: str
) -> None:
    fake = batch.folder / "apptainer"
    fake.write_text(
        '#!/usr/bin/env bash\nprintf "%s|" "$@" >>"$FAKE/container"; echo >>"$FAKE/container"\n'
        'until [[ $1 == *.sif ]]; do shift; done; shift; exec "$@"\n'
    )
    fake.chmod(0o755)
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
    assert code == 93 and "leave one out" in output
