"""Jobs of arrays, and environments that sites and shells leave to a job, on a real Slurm."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
from conftest import DISTILL
from machine import wait_until

pytestmark = pytest.mark.cluster


def test_both_tasks_of_an_array_leave_as_asked_come_back_and_finish(run):
    """The one with the number of the array asked about the other, and never came back."""
    runs = [dataclasses.replace(run, folder=Path(f"{run.folder}-{n}")) for n in (0, 1)]
    script = run.folder.parent / "array.sh"
    script.write_text(f'#!/bin/bash\nexec bash {DISTILL} "$@-$SLURM_ARRAY_TASK_ID"\n')
    array = run.sbatch(
        *("--array=0-1", "--requeue", "--nodes=1", "--open-mode=append", "--signal=B:USR1@300"),
        f"--output={run.folder}-%a.batch.out",
        script=script,
        flags=["--run_dir", str(run.folder)],
    )
    jobs = [f"{array}_{n}" for n in (0, 1)]
    for one in runs:
        wait_until(lambda one=one: one.saved() >= 10, 90, f"a checkpoint in {one.folder}")
    run.cluster("scancel", "--batch", "--signal=USR1", *jobs)
    for job, one in zip(jobs, runs, strict=True):
        run.cluster.wait_restart(job)
        assert run.cluster.wait_end(job) == "COMPLETED", one.logs()
        assert one.saved() == run.payload.steps
        (requeue,) = one.events("requeue")
        assert (requeue["exit_code"], requeue["job"]) == (85, job)
        assert {path.name for path in (one.folder / "logs").iterdir()} == {
            f"{job}.{task}.out" for task in (0, 1)
        }


def test_sbatch_export_none_hands_on_what_the_script_exports(run):
    """It ended with 93: tasks did not know where rank 0 was, nor the modules of site.env."""
    # With NONE the job gets no FITB_SITE either: it finds the file where it was submitted.
    path = run.folder.parent / "slurm" / "site.env"
    path.parent.mkdir()
    lines = (f"export {name}='{value}'\n" for name, value in run.env().items())
    path.write_text("".join(lines))
    job = run.sbatch("--export=NONE", cwd=run.folder.parent)
    assert run.cluster.wait_end(job) == "COMPLETED", run.logs()
    assert run.saved() == run.payload.steps


def test_a_bound_of_memory_that_the_submitting_shell_had_does_not_stop_the_job(run):
    """srun refuses two bounds: three attempts ended before they began."""
    env = {"SLURM_MEM_PER_CPU": "1000", "SLURM_CPU_BIND": "x", "SLURM_CPU_BIND_LIST": "0x1"}
    job = run.sbatch("--mem=500", env=env)
    assert run.cluster.wait_end(job) == "COMPLETED", run.logs()
    assert len(run.events("attempt")) == 1


def test_an_interactive_shell_of_four_tasks_runs_one_process(run):
    """`fitb evaluate` waited there for three others; `fitb train` looked for rank 0."""
    seen = run.folder.parent / "world"
    words = "from fitb.base.world import World; import os; print(World.from_env(os.environ))"
    command = f'{run.payload.python} -c "{words}" >{seen}'
    shell = ("srun", "--interactive", "--ntasks=1", "--nodes=1", "bash", "-c", command)
    salloc = ["salloc", "--nodes=1", "--ntasks=4", *shell]
    env = run.cluster.env | run.env()
    done = subprocess.run(salloc, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert seen.read_text().strip() == "World(rank=0, size=1, local_rank=0)"
    batch = run.cluster.sbatch(
        "--ntasks=4", "--nodes=1", f"--output={seen}", f"--wrap={command}", env=env
    )
    assert run.cluster.wait_end(batch) == "COMPLETED"
    assert seen.read_text().strip() == "World(rank=0, size=1, local_rank=0)"
