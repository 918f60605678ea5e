"""Who am I among the processes of a job: ranks read from the environment of whatever started it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fitb.base.errors import ConfigError

_LOCAL_RANK = re.compile(r"--local[-_]rank(?:=(.*))?")


def job_id(env: Mapping[str, str]) -> str:
    """Return what Slurm's commands call the job of this environment; empty where there is none.

    A task of a job array is ARRAY_INDEX: its SLURM_JOB_ID alone may mean all tasks, as the last to
    start keeps the number of the array.
    """
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID", "")


def address_of(host: str, env: Mapping[str, str]) -> str:
    """Return where others reach a host: its name, with what the site has put behind it.

    On some clusters the bare name is the network of the administration, and NAMEi the fast one.
    """
    return host + env.get("FITB_HOST_SUFFIX", "")


def without_local_rank(flags: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Return words without the --local_rank that DeepSpeed's launcher puts behind its program.

    Raises: ConfigError where it says something else than LOCAL_RANK.
    """
    kept, words = [], iter(flags)
    for word in words:
        found = _LOCAL_RANK.fullmatch(word)
        if not found:
            kept.append(word)
            continue
        given = next(words, "") if found[1] is None else found[1]
        if given != env.get("LOCAL_RANK"):
            raise ConfigError(
                f"--local_rank={given}, and LOCAL_RANK is {env.get('LOCAL_RANK', 'not set')}; a"
                " launcher sets both alike: leave the flag out (deepspeed --no_local_rank), or use"
                " torchrun"
            )
    return kept


@dataclass(frozen=True)
class World:
    """One process's place in the job.

    Args:
        rank: 0 .. size - 1 over all hosts.
        size: number of processes.
        local_rank: place on this host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> World:
        """Read torchrun's names, else those of the Slurm step, else be alone.

        A batch script, and the shell of salloc, run once, whatever SLURM_NTASKS of their job says.

        Raises: ConfigError where a value is not an integer or the ranks contradict each other.
        """
        for names in (
            ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
            ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
        ):
            missing = [name for name in names if name not in env]
            if not missing:
                break
            if len(missing) < len(names) and names[0] == "RANK":
                raise ConfigError(
                    f"{', '.join(missing)} is not set but the others of {', '.join(names)} are;"
                    " set all three, or none to run alone"
                )
        else:
            return cls()
        try:
            rank, size, local_rank = (int(env[name]) for name in names)
        except ValueError as error:
            raise ConfigError(f"{'/'.join(names)} must be integers: {error}") from None
        if not 0 <= rank < size:
            raise ConfigError(
                f"{names[0]}={rank} is not below {names[1]}={size}; check the launcher"
            )
        return cls(rank, size, local_rank)

    def env(self, master_addr: str, master_port: int) -> dict[str, str]:
        """The five variables that torch.distributed and DeepSpeed read."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": master_addr,
            "MASTER_PORT": str(master_port),
        }
