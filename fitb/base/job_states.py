"""Slurm's words for the state of a job, as `scontrol show job` has them."""

FORGOTTEN = "FORGOTTEN"  # our word: Slurm drops a job from its memory some minutes after its end
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
