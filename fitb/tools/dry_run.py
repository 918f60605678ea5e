"""Dry run of a batch script: `bash slurm/distill.sh --dry-run [flags]` calls this.

    python -m fitb.tools.dry_run KIND SCRIPT "NAMES" [flags]

KIND is distill, evaluate or prepare; NAMES are the SBATCH_ variables of the submitting shell,
without those that the script reads from slurm/site.env, too late for sbatch.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fitb.base.errors import FINISHED, FitbError
from fitb.cluster.sbatch import Option, hosts_and_tasks, read_options, values
from fitb.cluster.slurm import default_run_dir, num_ranks
from fitb.cluster.slurm_config import leaves_at_once
from fitb.config import Config
from fitb.config.ds_config import read_ds_config
from fitb.config.parser import parse
from fitb.config.yaml import to_yaml

SPELLINGS = ("--dry-run", "--dry_run")


def render(option: Option) -> str:
    """Render an option as a comment of the script, with its source."""
    value = "" if option.value is None else f"={shlex.quote(option.value)}"
    return f"#   --{option.name + value:<32} {option.source}"


def configuration(kind: str, flags: Sequence[str], given: Mapping[str, str]) -> str:
    """Return the resolved configuration as YAML; for prepare, its stages come first.

    Raises: ConfigError if the command would refuse the flags.
    """
    if kind == "prepare":
        from fitb.corpus.slurm_stages import dry_run, launcher_arguments

        return dry_run(*launcher_arguments().split(["--cluster", "slurm", *flags]))
    if kind == "evaluate":
        from fitb.evaluation.evaluate_config import EvaluateConfig

        config = parse(EvaluateConfig, "fitb evaluate", flags)
        return f"# -- fitb evaluate\n{to_yaml(config)}"
    run_dir = default_run_dir(given.get("job-name") or "fitb-distill")
    training = parse(Config, "fitb train", ["--run_dir", run_dir, *flags])
    _check(training, given)
    return f"# -- fitb train\n{to_yaml(training)}"


def _check(config: Config, given: Mapping[str, str]) -> None:
    """Raise ConfigError for what the job would refuse at its start."""
    read_ds_config(config.ds_config)
    hosts, tasks = hosts_and_tasks(given)
    env = {"SLURM_NTASKS": str(hosts * tasks), "SLURM_JOB_NUM_NODES": str(hosts)}
    env |= {"FITB_PROCESSES_PER_NODE": str(tasks)}
    env |= {name: value for name, value in os.environ.items() if name.startswith("FITB_")}
    config.grad_accum(num_ranks(env))


def main(args: Sequence[str]) -> int:
    kind, path, held, *rest = args
    flags = [word for word in rest if word not in SPELLINGS]
    env = {name: os.environ[name] for name in held.split() if name in os.environ}
    try:
        script = Path(path).read_text()
        options = read_options(script, env)
        given = values(options)
        follows = configuration(kind, flags, given)
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    heading = "# -- options that hold; the command line of sbatch overrides them"
    print(script, heading, *map(render, options.values()), "", sep="\n")
    print(follows, end="")
    if why := leaves_at_once(given.get("time"), given.get("signal")):
        print(f"fitb: {why}", file=sys.stderr)
    return FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
