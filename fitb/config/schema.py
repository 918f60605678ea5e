"""The typed configuration: one definition for YAML, dotted flags, --help and the saved config.yaml.

Sections are frozen dataclasses whose checks never change a value. Every number has one owner: the
files of ds_configs/ own ZeRO, offload and loss scaling; these sections own everything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from fitb.base.errors import ConfigError

# Keys of earlier versions, which files and command lines may still set without effect.
DROPPED = ("speed.keep_memory", "track.rows")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def check_range(
    section: str, values: object, *names: str, low: float, high: float = math.inf
) -> None:
    """Raise ConfigError unless low <= value < high for each named field; None passes, NaN fails."""
    for name in names:
        value = getattr(values, name)
        limit = f"at least {low:g}" + (f", below {high:g}" if high < math.inf else "")
        _require(value is None or low <= value < high, f"{section}{name}={value}; {limit}")


@dataclass(frozen=True)
class Geometry:
    """A BERT with random weights, by its sizes (TinyBERT: Jiao et al. 2020, section 4.1).

    Args:
        num_hidden_layers: number of Transformer layers.
        hidden_size: width of the hidden states; a multiple of the number of heads.
        intermediate_size: width of the feed-forward layer.
        num_attention_heads: number of heads; must be the teacher's if attention is distilled.
    """

    num_hidden_layers: int = 4
    hidden_size: int = 312
    intermediate_size: int = 1200
    num_attention_heads: int = 12

    def __post_init__(self) -> None:
        check_range("", self, *(key.name for key in fields(self)), low=1)
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size={self.hidden_size} is not a multiple of"
            f" num_attention_heads={self.num_attention_heads}",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Teacher and student.

    Args:
        teacher: Hugging Face folder or hub name, or a geometry; null trains the mlm term alone.
        student: Hugging Face folder or hub name, or a geometry with random weights.
        dropout: dropout probability of the student; null keeps that of its configuration.
        positions: initial position embeddings of a student with random weights: random, or copied
            from a teacher of the same width.
        teacher_precision: same as the student's, or fp8 for the matmuls of the encoder, on GPUs
            that support it.
    """

    teacher: Geometry | str | None = None
    student: Geometry | str = field(default_factory=Geometry)
    dropout: float | None = None
    positions: Literal["random", "teacher"] = "random"
    teacher_precision: Literal["same", "fp8"] = "same"

    def __post_init__(self) -> None:
        check_range("model.", self, "dropout", low=0, high=1)
        for name in ("teacher", "student"):
            value, sizes = getattr(self, name), [key.name for key in fields(Geometry)]
            _require(
                not (isinstance(value, str) and value.lstrip().startswith("{")),
                f"model.{name}={value}; expected a folder, a hub name or a geometry, whose keys are"
                f" {', '.join(sizes)}",
            )
        _require(
            self.positions == "random" or bool(self.teacher and isinstance(self.student, Geometry)),
            f"model.positions=teacher, with model.teacher={self.teacher} and model.student="
            f"{self.student}; expected a teacher, and the student as a geometry; or use random",
        )


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


@dataclass(frozen=True)
class MaskConfig:
    """Masking of rows.

    Args:
        strategy: token (Devlin et al. 2019), whole_word, or span (SpanBERT: Joshi et al. 2020).
        fraction: share of a row's ordinary tokens that are masked, an exact count per row.
        mask_share: share of the masked positions that show [MASK].
        random_share: share of them that show a random ordinary token; the rest keep their token.
        span_p: parameter of the geometric distribution of span lengths in words.
        span_max_words: longest span in words.
    """

    strategy: Literal["token", "whole_word", "span"] = "whole_word"
    fraction: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    span_p: float = 0.2
    span_max_words: int = 10

    def __post_init__(self) -> None:
        _require(0 < self.fraction < 1, f"mask.fraction={self.fraction}; between 0 and 1")
        _require(
            self.mask_share >= 0
            and self.random_share >= 0
            and self.mask_share + self.random_share <= 1,
            f"mask_share={self.mask_share} and random_share={self.random_share};"
            " neither below 0, their sum at most 1",
        )
        _require(0 < self.span_p <= 1, f"mask.span_p={self.span_p}; above 0, at most 1")
        check_range("mask.", self, "span_max_words", low=1)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the five terms; a term of weight 0 is neither computed nor logged.

    Args:
        embedding: mean squared error of the embedding output (TinyBERT, eq. 9).
        hidden: mean squared error of hidden states, summed over layers (eq. 8).
        attention: mean squared error of attention scores, summed over layers (eq. 7).
        logits: soft cross-entropy at masked positions (eq. 10), times temperature squared.
        mlm: cross-entropy with the true tokens at masked positions.
        temperature: softmax temperature of the soft cross-entropy.
        layer_map: teacher layer (1 = first) for each student layer; uniform spreads them evenly.
        form: masked_mean averages over real tokens; tinybert_reference uses the formulas of the
            original code, padding included.
    """

    embedding: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0
    logits: float = 1.0
    mlm: float = 1.0
    temperature: float = 1.0
    layer_map: Literal["uniform"] | list[int] = "uniform"
    form: Literal["masked_mean", "tinybert_reference"] = "masked_mean"

    def __post_init__(self) -> None:
        weights = (self.embedding, self.hidden, self.attention, self.logits, self.mlm)
        _require(all(w >= 0 for w in weights), f"objective weights {weights}; none below 0")
        _require(max(weights) > 0, "every objective weight is 0; give at least one term a weight")
        _require(self.temperature > 0, f"temperature={self.temperature}; above 0")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    Args:
        lr: peak learning rate.
        warmup_steps: steps of linear warm-up.
        schedule: shape of the learning rate from the peak to the end of the run.
        betas: decay rates of the two moments.
        eps: term added to the denominator.
        weight_decay: decoupled weight decay; not applied to biases and LayerNorm.
        clip_norm: limit of the global gradient norm; 0 turns clipping off.
    """

    lr: float = 5e-4
    warmup_steps: int = 1000
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        names = ("lr", "warmup_steps", "eps", "weight_decay", "clip_norm")
        check_range("optim.", self, *names, low=0)
        _require(all(0 <= b < 1 for b in self.betas), f"optim.betas={self.betas}; in [0, 1)")


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
    """

    attention: Literal["auto", "sdpa", "eager"] = "auto"
    compile: bool | None = None
    pad: bool | None = None
    teacher_rows: int | None = None
    pack_teacher: bool = True
    fused_optimizer: bool = True

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

    Args:
        every_steps: steps between two checkpoints; 0 saves only at stops and at the end.
        keep_last: newest checkpoints to keep; at least 2, so that a damaged one has a predecessor.
    """

    every_steps: int = 1000
    keep_last: int = 2

    def __post_init__(self) -> None:
        check_range("checkpoint.", self, "every_steps", low=0)
        _require(
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
    """

    every_steps: int = 10
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "fitb"
    entity: str | None = None
    name: str | None = None

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
    """

    time_budget_min: float | None = None
    hang_s: float | None = 900.0

    def __post_init__(self) -> None:
        check_range("stop.", self, "time_budget_min", low=0)
        check_range("stop.", self, "hang_s", low=1)


@dataclass(frozen=True)
class AlgorithmsConfig:
    """Versions of functions that decide what a step computes; a run keeps its initial ones.

    Args:
        order: version of the permutation of rows.
        masks: version of the choice of masked positions; 1 clipped the lengths of spans.
        schedule: version of the learning rate as a function of the step.
        norm: version of the norm of gradients that clips them; 1 summed squares in fp32.
    """

    order: int = 1
    masks: int = 2
    schedule: int = 1
    norm: int = 2

    def __post_init__(self) -> None:
        for key in fields(self):
            value, newest = getattr(self, key.name), getattr(type(self), key.name)
            _require(
                value in range(1, newest + 1),
                f"algorithms.{key.name}={value}; 1 to {newest}; use the fitb that started the run",
            )


@dataclass(frozen=True)
class Config:
    """A training run.

    Args:
        run_dir: folder of the run; an existing run is resumed.
        steps: number of optimiser updates.
        global_batch: rows per step over all processes.
        micro_batch: most rows per forward pass and process; gradient accumulation follows from it.
        precision: arithmetic of the student and of the teacher.
        ds_config: DeepSpeed file, or a packaged one (zero1, zero2, zero2_offload, zero3).
        seed: seed of weights, order, masks and dropout.
    """

    run_dir: str
    steps: int = 100_000
    global_batch: int = 256
    micro_batch: int = 32
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
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

    def grad_accum(self, world_size: int) -> int:
        """Return the number of micro-batches per step and process.

        A step has the same rows with any number of processes (`world_size`); their shares, and the
        micro-batches of a share, differ by at most one row.

        Raises: ConfigError if a micro-batch would be empty.
        """
        least = self.global_batch // world_size
        number = math.ceil(math.ceil(self.global_batch / world_size) / self.micro_batch)
        if number > least:
            remedy = f"use micro_batch={self.micro_batch + 1}" if least else "use fewer processes"
            raise ConfigError(
                f"global_batch={self.global_batch} over {world_size} processes at micro_batch="
                f"{self.micro_batch} leaves a process without a row; expected at least one in each"
                f" micro-batch; {remedy}"
            )
        return number
