"""Who am I among the processes of a job: ranks read from the environment of whatever started it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fitb.errors import ConfigError


def job_id(env: Mapping[str, str]) -> str:
    """Return what Slurm's commands call the job of this environment; empty where there is none.

    A task of a job array is ARRAY_INDEX: its SLURM_JOB_ID alone may mean all tasks, as the last to
    start keeps the number of the array.
    """
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID", "")


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
