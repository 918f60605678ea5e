"""The same stages as Slurm arrays, each waiting for the one before: `python -m launch.prepare`.

The submitter checks everything and leaves. A stage that fails cancels those that wait for it;
submitting again runs the tasks that are missing.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datatrove.executor import SlurmPipelineExecutor
from datatrove.utils.logging import logger as datatrove_logger

from fitb.cluster import environment, slurm
from fitb.cluster.environment import Site
from fitb.config.launcher import LauncherArguments
from fitb.config.parser import parse
from fitb.config.yaml import to_yaml
from fitb.corpus.manifest import MANIFEST
from fitb.corpus.sources import Plan
from fitb.errors import CRASH, FINISHED, ConfigError, SystemFault
from fitb.fsio import write_json
from fitb.prepare.config import PrepareConfig
from fitb.prepare.place import JOBS, folder_of, leave, lock_of, place_of, take
from fitb.prepare.run import Stage, prepare, stages_of
from fitb.prepare.work import Work, begin

_POLL_S = 2.0
_PROGRAM = "launch_pickled_pipeline"  # of datatrove
# The stages that wait go by exit codes, and srun's 0 says nothing: datatrove's own record does.
_DONE = """\
ranks=($(tr -d '[],' <{folder}/ranks_to_run.json))
rank=${{ranks[SLURM_ARRAY_TASK_ID + {offset} * RUN_OFFSET]}}
[[ -z $rank || -e {folder}/completions/$(printf %05d "$rank") ]]
"""

logger = logging.getLogger(__name__)


class _Slurm(SlurmPipelineExecutor):  # type: ignore[misc]
    """datatrove's Slurm executor without what a site may lack: QOS, partition, merge jobs."""

    slurm_logs_folder: str

    def __init__(
        self, stage: Stage, where: argparse.Namespace, folder: Path, site: Site, **more: Any
    ) -> None:
        tasks = stage.tasks or where.tasks
        path = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
        super().__init__(
            [stage.step],
            tasks=tasks,
            time=f"{where.time_min:.0f}",
            partition=where.partition,
            cpus_per_task=where.cpus_per_task,
            mem_per_cpu_gb=where.mem_per_cpu_gb,
            workers=where.max_running or -1,
            job_name=f"{where.job_name}-{stage.name}",
            qos=None,
            env_command="; ".join([*site.setup, path]),
            logging_dir=str(folder / "stages" / f"{stage.name}-{tasks}"),
            sbatch_args={"kill-on-invalid-dep": "yes", "open-mode": "append"},
            srun_args={"kill-on-bad-exit": "1"},
            **more,
        )
        self._container = shlex.join(site.container)

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        """Return the script, in which paths and names are words of bash."""
        pickle = self.logging_dir.resolve_paths("executor.pik")
        run_script = run_script.replace(pickle, shlex.quote(pickle))
        if self._container:
            run_script = run_script.replace(_PROGRAM, f"{self._container} {_PROGRAM}", 1)
        arguments = {name: value and shlex.quote(str(value)) for name, value in sbatch_args.items()}
        script = str(super().get_launch_file_contents(arguments, run_script))
        began = f"Starting data processing job {self.job_name}"
        folder = shlex.quote(str(Path(pickle).parent))
        script = script.replace(f'echo "{began}"', f"echo {shlex.quote(began)}", 1)
        return script + _DONE.format(folder=folder, offset=self.max_array_size)

    def script(self) -> str:
        """Return the script of a first submission, to the letter, making no folder."""
        logs, self.slurm_logs_folder = self.slurm_logs_folder, os.sep  # one that is there
        arguments = self.get_sbatch_args(min(self.tasks, self.max_array_size))
        self.slurm_logs_folder = logs
        arguments["output"] = arguments["error"] = self._log_pattern()
        options = " ".join(f"--{name}={value}" for name, value in self.srun_args.items())
        pickle = self.logging_dir.resolve_paths("executor.pik")
        command = f"srun {options} -l -n {self.nodes_per_task} {_PROGRAM} {pickle}"
        return self.get_launch_file_contents(arguments, command)

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        arguments: dict[str, Any] = super().get_sbatch_args(max_array)
        arguments["output"] = arguments["error"] = self._log_pattern()
        if not self.partition:
            del arguments["partition"]
        if not self.mem_per_cpu_gb:
            del arguments["mem-per-cpu"]
        return arguments

    def _log_pattern(self) -> str:
        return self.slurm_logs_folder.replace("%", "%%") + "/%A_%a.out"

    def launch_merge_stats(self) -> None:
        """Do nothing: the manifest holds the counts."""


def submit(config: PrepareConfig, where: argparse.Namespace) -> dict[str, str]:
    """Submit all stages; return the job id of each that has something to do.

    Args:
        config: what to make.
        where: tasks, max_running, cpus_per_task, mem_per_cpu_gb, time_min, partition, job_name.
    Raises: as prepare; SystemFault where Slurm refuses.
    """
    if where.tasks < 1:
        raise ConfigError(f"tasks={where.tasks}; at least 1")
    if "\\" in str(folder_of(config)):
        raise ConfigError(
            f"out={config.out!r} holds a backslash, after which Slurm gives all tasks one log; name"
            " another folder, or run `fitb prepare` on this machine instead"
        )
    if shutil.which("sbatch") is None:
        raise SystemFault("sbatch not found; run `fitb prepare` on this machine instead")
    lock = lock_of(config)
    take(lock, config)
    try:
        work = begin(config)
        jobs = _launch(work, where)
    finally:
        leave(lock)
    return jobs


def _launch(work: Work, where: argparse.Namespace) -> dict[str, str]:
    datatrove_logger.disable("datatrove")
    site = environment.enter(os.environ, {"SBATCH_PARTITION": where.partition})
    environment.leave_job(os.environ)
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        if name not in environment.HANDED_ON:
            del os.environ[name]
    before: _Slurm | None = None
    jobs: dict[str, str] = {}
    for stage in stages_of(work):
        before = _Slurm(stage, where, work.folder, site, depends=before)
        try:
            before.run()
        except (subprocess.CalledProcessError, OSError) as error:
            others = f"cancel the jobs {' '.join(jobs.values())}, and " if jobs else ""
            raise SystemFault(
                f"stage {stage.name} was not accepted: {error}; {others}submit again"
            ) from error
        if before.job_id != -1:
            jobs[stage.name] = str(before.job_id)
            write_json(work.folder / JOBS, jobs)
    return jobs


def dry_run(where: argparse.Namespace, flags: Sequence[str]) -> str:
    """Return the scripts of all stages, and the configuration as YAML; write nothing.

    Raises: ConfigError, as `launch`.
    """
    config = _parse(where, flags)
    if not _on_slurm(where):
        return f"# no Slurm: the stages are processes of this machine\n\n{to_yaml(config)}"
    site = environment.enter(os.environ, {"SBATCH_PARTITION": where.partition})
    work = Work(folder_of(config), place_of(config), config, {}, Plan((), (), (), ()))
    parts, before = [], ""
    for stage in stages_of(work):
        after = f" --dependency=afterok:JOB_OF_{before.upper()}" if before else ""
        parts.append(f"# -- stage {stage.name}: sbatch --export=ALL,RUN_OFFSET=0{after}")
        parts.append(_Slurm(stage, where, work.folder, site).script())
        before = stage.name
    return "\n".join([*parts, f"# -- fitb prepare\n{to_yaml(config)}"])


def wait_for(config: PrepareConfig, jobs: dict[str, str]) -> int:
    """Wait for the end of the last stage; return FINISHED or CRASH."""
    for last in list(jobs.values())[-1:]:
        while slurm.job_state(last) not in slurm.ENDED:
            time.sleep(_POLL_S)
    if (Path(config.out) / MANIFEST).exists():
        return FINISHED
    logger.error("no shard set: see the logs in %s", folder_of(config) / "stages")
    return CRASH


def launcher_arguments() -> LauncherArguments:
    """Build the parser of the flags that say how a preparation is spread."""
    parser = LauncherArguments("python -m launch.prepare", "fitb prepare")
    add = parser.add_argument
    add("--cluster", choices=("auto", "slurm", "local"), default="auto", help="where; auto looks")
    add("--tasks", type=int, default=16, help="tasks of a stage: the size of its array")
    add("--max_running", type=int, help="tasks of a stage that run at the same time")
    add("--cpus_per_task", type=int, default=1, help="CPU cores of a task; it uses one")
    add("--mem_per_cpu_gb", type=int, default=2, help="in GB; 0 leaves it to the site")
    add("--time_min", type=float, default=240, help="time limit of a task, in minutes")
    add("--partition", help="Slurm partition")
    add("--job_name", default="fitb-prepare", help="Slurm's name of the jobs")
    add("--wait", action="store_true", help="wait for the end and return its exit code")
    add(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="print the scripts and the configuration; submit nothing, write nothing",
    )
    return parser


def _parse(where: argparse.Namespace, flags: Sequence[str]) -> PrepareConfig:
    return parse(PrepareConfig, where.launcher.prog, flags, launcher=where.launcher)


def _on_slurm(where: argparse.Namespace) -> bool:
    return where.cluster == "slurm" or (where.cluster == "auto" and bool(shutil.which("srun")))


def launch(where: argparse.Namespace, flags: Sequence[str]) -> int:
    """Submit, or prepare here where there is no Slurm.

    Args:
        where: of `launcher_arguments`.
        flags: of `fitb prepare`.
    """
    config = _parse(where, flags)
    if where.dry_run:
        print(dry_run(where, flags), end="")
        return FINISHED
    if not _on_slurm(where):
        print(prepare(config))
        return FINISHED
    jobs = submit(config, where)
    print(" ".join(f"{name}={job}" for name, job in jobs.items()), flush=True)
    print(f"logs: {folder_of(config) / 'stages'}", flush=True)
    return wait_for(config, jobs) if where.wait else FINISHED
