"""The typed configuration: one definition for YAML, dotted flags, --help and the saved config.yaml.

Sections are frozen dataclasses whose checks never change a value. Every number has one owner: the
files of ds_configs/ own ZeRO, offload and loss scaling; these sections own everything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fitb.base.errors import ConfigError
from fitb.config.checks import check_range, require
from fitb.config.recipe import (
    AlgorithmsConfig,
    MaskConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
)

# Keys of earlier versions, which files and command lines may still set without effect.
DROPPED = ("speed.keep_memory", "track.rows")


@dataclass(frozen=True)
class DataConfig:
    """Training rows.

    Args:
        shards: folder that `fitb prepare` wrote, or its URL: file://, https://, s3:// and others.
        window_shards: number of shards whose rows are shuffled together.
        prefetch_steps: global batches to read ahead.
        cache_dir: node-local folder in which fitb creates a cache folder for shards of a URL;
            nothing else in it is counted or removed. null takes $SLURM_TMPDIR, then $TMPDIR.
        cache_gb: size limit of the cache in GB (1e9 bytes); two windows must fit.
        fetch_deadline_s: seconds after which a file that cannot be downloaded stops the run.
    """

    shards: str = "data/shards"
    window_shards: int = 16
    prefetch_steps: int = 2
    cache_dir: str | None = None
    cache_gb: float = 20.0
    fetch_deadline_s: float = 600.0

    def __post_init__(self) -> None:
        check_range("data.", self, "window_shards", low=1)
        check_range("data.", self, "prefetch_steps", "cache_gb", "fetch_deadline_s", low=0)


CPU_ROWS = 32  # of a micro-batch that is left to the machine, on a CPU
GPU_TOKENS = 32_768  # of a pass on a GPU: saturates it


@dataclass(frozen=True)
class SpeedConfig:
    """Execution settings; results stay the same up to rounding.

    Args:
        attention: sdpa is torch's fused attention, eager materialises the scores; auto: the faster.
        compile: torch.compile the student, the losses and a teacher that is not packed; null
            does so on GPUs without ZeRO 3.
        pad: pad head and vocabulary sizes for GPU kernels; null does so on GPUs without ZeRO 3.
        teacher_rows: most rows per forward pass of the teacher, rounded to micro-batches; null
            takes 32,768 tokens on a GPU, micro_batch rows on a CPU.
        pack_teacher: on a CPU without `pad`, use oneDNN matmuls with packed teacher weights.
        fused_optimizer: update all weights in one kernel.
        cuda_graphs: on a GPU, with compile, replay the launches of each model as one CUDA graph.
        deterministic: on a GPU, only kernels whose results do not vary between runs; slower.
    """

    attention: Literal["auto", "sdpa", "eager"] = "auto"
    compile: bool | None = None
    pad: bool | None = None
    teacher_rows: int | None = None
    pack_teacher: bool = True
    fused_optimizer: bool = True
    cuda_graphs: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_range("speed.", self, "teacher_rows", low=1)


@dataclass(frozen=True)
class EvalConfig:
    """Validation during training, on fixed masks.

    Args:
        every_steps: steps between two evaluations; 0 turns them off.
        rows: number of validation rows used; 0 means all.
        patience: evaluations without a better loss after which the run stops; 0 never stops.
    """

    every_steps: int = 1000
    rows: int = 1024
    patience: int = 0

    def __post_init__(self) -> None:
        check_range("eval.", self, "every_steps", "rows", "patience", low=0)


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints, besides those at every stop and at the end.

    Without `every_steps` and `every_min` the interval is the square root of 2 x seconds of a save,
    as measured, x seconds between failures (Young 1974, https://doi.org/10.1145/361147.361115).

    Args:
        every_steps: steps between two checkpoints; 0 saves only at stops and at the end.
        every_min: minutes between two checkpoints; without `every_steps` the step with the best
            validation loss has one too.
        failures_per_day: kills and crashes expected in a day of training, warned stops not counted.
        background: write and commit while training goes on, from a copy in host memory.
        keep_last: newest checkpoints to keep; at least 2, so that a damaged one has a predecessor.
    """

    every_steps: int | None = None
    every_min: float | None = None
    failures_per_day: float = 1.0
    background: bool = True
    keep_last: int = 2

    def __post_init__(self) -> None:
        check_range("checkpoint.", self, "every_steps", "every_min", "failures_per_day", low=0)
        zero = "checkpoint.every_min=0; use null, and --checkpoint.every_steps 0 to save at stops"
        require(self.every_min != 0, zero)
        both = f"checkpoint.every_steps=0 with every_min={self.every_min}; leave one of them out"
        require(self.every_min is None or self.every_steps != 0, both)
        require(
            self.keep_last >= 2,
            f"checkpoint.keep_last={self.keep_last}; at least 2, so that a damaged one has a"
            " predecessor",
        )


@dataclass(frozen=True)
class TrackConfig:
    """Logging of metrics to metrics.jsonl, which W&B mirrors.

    Args:
        every_steps: steps between two lines of metrics.
        wandb: mode of W&B; auto is online with an API key, else offline.
        project: W&B project.
        entity: W&B team or user.
        name: name of the W&B run; null takes the name of the run folder.
        group: W&B group, as of the runs of a sweep; null is none.
    """

    every_steps: int = 10
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "fitb"
    entity: str | None = None
    name: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        check_range("track.", self, "every_steps", low=1)


@dataclass(frozen=True)
class StopConfig:
    """Time limits.

    Args:
        time_budget_min: minutes after which this attempt saves a checkpoint and exits with 85, to
            be started again; null never does.
        hang_s: seconds without a step, start-up and saving included, after which every rank logs
            its stacks and the job fails; null never does.
        restarts: most times that the tasks are started again in the same allocation after a crash,
            if Slurm finds the hosts well; 0 requeues the job after each.
    """

    time_budget_min: float | None = None
    hang_s: float | None = 900.0
    restarts: int = 10

    def __post_init__(self) -> None:
        check_range("stop.", self, "time_budget_min", low=0)
        check_range("stop.", self, "hang_s", low=1)
        check_range("stop.", self, "restarts", low=0)


@dataclass(frozen=True)
class Config:
    """A training run.

    Args:
        run_dir: folder of the run; an existing run is resumed.
        steps: number of optimiser updates; may be changed when a run goes on, as long as no step
            of old and new schedule has decayed.
        branch_from: run or checkpoint whose step, weights and moments a new run begins with; null
            begins at step 0.
        global_batch: rows per step over all processes.
        micro_batch: most rows per forward pass and process; gradient accumulation follows from it.
            null takes 32 on a CPU, on a GPU 32,768 tokens, below 30 GB of memory 8,192; a run that
            goes on keeps its own.
        precision: arithmetic of the student and of the teacher; auto is bf16 on GPUs made for it,
            else fp16, and on CPUs the faster of bf16 and fp32; a run that goes on keeps its own.
        ds_config: DeepSpeed file, or a packaged one (zero1, zero2, zero2_offload, zero3).
        seed: seed of weights, order, masks and dropout.
    """

    run_dir: str
    steps: int = 100_000
    branch_from: str | None = None
    global_batch: int = 256
    micro_batch: int | None = None
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    ds_config: str = "zero2"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    algorithms: AlgorithmsConfig = field(default_factory=AlgorithmsConfig)

    def __post_init__(self) -> None:
        check_range("", self, "steps", "global_batch", "micro_batch", low=1)
        require(
            self.optim.decay_steps <= self.steps,
            f"optim.decay_steps={self.optim.decay_steps}, steps={self.steps}; at most as many:"
            f" use --optim.decay_steps {self.steps // 10}, or 0 for no decay",
        )

    @property
    def decay_begins(self) -> int:
        """Steps that do not depend on the end of the run: until they are done it can be moved."""
        optim = self.optim
        if optim.schedule in ("constant", "wsd"):
            return self.steps - optim.decay_steps
        return min(self.steps, optim.warmup_steps)

    @property
    def rows_per_pass(self) -> int:
        """micro_batch, or 32 before the machine has decided."""
        return self.micro_batch or CPU_ROWS

    def grad_accum(self, world_size: int) -> int:
        """Return the number of micro-batches per step and process.

        A step has the same rows with any number of processes (`world_size`); their shares, and the
        micro-batches of a share, differ by at most one row.

        Raises: ConfigError if a micro-batch would be empty.
        """
        least, most = self.global_batch // world_size, self.rows_per_pass
        number = math.ceil(math.ceil(self.global_batch / world_size) / most)
        if number > least:
            remedy = f"use micro_batch={most + 1}" if least else "use fewer processes"
            raise ConfigError(
                f"global_batch={self.global_batch} over {world_size} processes at micro_batch="
                f"{most} leaves a process without a row; expected at least one in each"
                f" micro-batch; {remedy}"
            )
        return number
