"""What a script of slurm/ would do, printed: `bash slurm/distill.sh --dry-run [flags]` calls this.

    python -m fitb.dry_run KIND SCRIPT "NAMES" [flags]

KIND is distill, evaluate or prepare; NAMES are the SBATCH_ variables of the shell that would
submit, without those that the script itself reads from slurm/site.env too late for sbatch.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fitb.cluster.site import leaves_at_once
from fitb.cluster.slurm import default_run_dir, num_ranks
from fitb.config import Config
from fitb.config.parser import parse
from fitb.config.yaml import to_yaml
from fitb.ds_config import read_ds_config
from fitb.errors import FINISHED, FitbError

SPELLINGS = ("--dry-run", "--dry_run")
# Options of sbatch whose variable is not their name in capitals.
_NAMES = {
    "ARRAY_INX": "array",
    "MEM_PER_NODE": "mem",
    "REQ_SWITCH": "switches",
    "TIMELIMIT": "time",
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of sbatch.

    Args:
        name: long, without dashes.
        value: None of a switch.
        source: what says so.
    """

    name: str
    value: str | None
    source: str

    def render(self) -> str:
        word = (
            f"--{self.name}" if self.value is None else f"--{self.name}={shlex.quote(self.value)}"
        )
        return f"#   {word:<34} {self.source}"


def options_of(script: str, env: Mapping[str, str]) -> list[Option]:
    """Return the options that hold for a script, in the order of sbatch's own reading.

    Args:
        script: text. Its #SBATCH lines give way to the environment.
        env: SBATCH_ variables of the shell that submits.
    """
    found = {option.name: option for option in [*_lines(script), *_variables(env)]}
    return list(found.values())


def _lines(script: str) -> Iterator[Option]:
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            for word in shlex.split(line, comments=False)[1:]:
                name, equals, value = word.removeprefix("--").partition("=")
                yield Option(name, value if equals else None, "#SBATCH")


def _variables(env: Mapping[str, str]) -> Iterator[Option]:
    for variable, value in sorted(env.items()):
        short = variable.removeprefix("SBATCH_")
        if short != variable:
            name = _NAMES.get(short, short.lower().replace("_", "-"))
            yield Option(name, value or None, variable)


def configuration(kind: str, flags: Sequence[str], options: Sequence[Option]) -> str:
    """Return the resolved configuration as YAML; of a preparation after its stages.

    Raises: ConfigError where the command would refuse the flags.
    """
    values = {option.name: option.value for option in options}
    if kind == "prepare":
        from fitb.prepare.slurm import dry_run, launcher_arguments

        return dry_run(*launcher_arguments().split(["--cluster", "slurm", *flags]))
    if kind == "evaluate":
        from fitb.evaluate.config import EvaluateConfig

        config = parse(EvaluateConfig, "fitb evaluate", flags)
        return f"# -- fitb evaluate\n{to_yaml(config)}"
    run_dir = default_run_dir(values.get("job-name") or "fitb-distill")
    training = parse(Config, "fitb train", ["--run_dir", run_dir, *flags])
    _check(training, values)
    return f"# -- fitb train\n{to_yaml(training)}"


def _check(config: Config, values: Mapping[str, str | None]) -> None:
    """Raise ConfigError where the job would find at its start that it cannot train so."""
    read_ds_config(config.ds_config)
    hosts = re.match(r"\d+", values.get("nodes") or "1")
    nodes, each = int(hosts[0]) if hosts else 1, int(values.get("ntasks-per-node") or 1)
    env = {"SLURM_NTASKS": str(nodes * each), "SLURM_JOB_NUM_NODES": str(nodes)}
    env |= {"FITB_PROCESSES_PER_NODE": str(each)}
    env |= {name: os.environ[name] for name in os.environ if name.startswith("FITB_")}
    config.grad_accum(num_ranks(env))


def main(args: Sequence[str]) -> int:
    kind, path, held, *rest = args
    flags = [word for word in rest if word not in SPELLINGS]
    env = {name: os.environ[name] for name in held.split() if name in os.environ}
    try:
        script = Path(path).read_text()
        options = options_of(script, env)
        follows = configuration(kind, flags, options)
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    heading = "# -- options that hold; those on the command line of sbatch win over them"
    print(script, heading, *(option.render() for option in options), "", sep="\n")
    print(follows, end="")
    values = {option.name: option.value for option in options}
    if why := leaves_at_once(values.get("time"), values.get("signal")):
        print(f"fitb: {why}", file=sys.stderr)
    return FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
