"""Slurm job states, as in `scontrol show job`."""

FORGOTTEN = "FORGOTTEN"  # not Slurm's: a job that Slurm dropped some minutes after its end
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "DEADLINE",
    "BOOT_FAIL",
    FORGOTTEN,
)
WAITING = ("PENDING", "REQUEUED", "CONFIGURING", "SUSPENDED")
