"""Rank, world size and local rank of this process, from torchrun's or Slurm's environment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fitb.base.errors import ConfigError

_LOCAL_RANK = re.compile(r"--local[-_]rank(?:=(.*))?")


def job_id(env: Mapping[str, str]) -> str:
    """Return the Slurm job id of this environment; empty outside Slurm.

    A task of a job array is ARRAY_INDEX: its SLURM_JOB_ID alone may address all tasks, as the last
    one to start keeps the id of the array.
    """
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID", "")


def starts_of(env: Mapping[str, str]) -> tuple[int, int]:
    """Return how often Slurm has requeued this job, and how often its script has started the tasks
    again since. Of two starts of a job the later one compares as greater.
    """
    return int(env.get("SLURM_RESTART_COUNT", "0")), int(env.get("FITB_START", "0"))


def lead_s_of(env: Mapping[str, str]) -> float | None:
    """Return the seconds between Slurm's warning and the end of the job, FITB_LEAD_S, if known."""
    lead = env.get("FITB_LEAD_S", "")
    return float(lead) if lead.isdigit() else None


def address_of(host: str, env: Mapping[str, str]) -> str:
    """Return the name by which other hosts reach a host: with FITB_HOST_SUFFIX appended.

    On some clusters NAME is on the management network, and NAMEi on the fast one.
    """
    return host + env.get("FITB_HOST_SUFFIX", "")


def without_local_rank(flags: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Remove the --local_rank flag that DeepSpeed's launcher appends.

    Args:
        flags: words of the command line.
        env: environment variables.
    Raises: ConfigError if the flag differs from LOCAL_RANK.
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
                f"--local_rank={given}, but LOCAL_RANK is {env.get('LOCAL_RANK', 'not set')};"
                " expected the same value; leave the flag out (deepspeed --no_local_rank), or use"
                " torchrun"
            )
    return kept


@dataclass(frozen=True)
class World:
    """This process among all processes of the job.

    Args:
        rank: rank over all hosts, 0 .. size - 1.
        size: number of processes of the job.
        local_rank: rank among the processes of this host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> World:
        """Read torchrun's variables, else those of the Slurm step; else this process is alone.

        SLURM_NTASKS is ignored: a batch script and a salloc shell are single processes.

        Raises: ConfigError if a value is not an integer, or the values contradict each other.
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
                    f"{', '.join(missing)} not set, but others of {', '.join(names)} are; set all"
                    " three, or none for a single process"
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
        """Return the five environment variables that torch.distributed and DeepSpeed read."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": master_addr,
            "MASTER_PORT": str(master_port),
        }
