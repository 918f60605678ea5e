"""Configurations of the benchmarks; importing them needs no torch, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fitb.base.errors import ConfigError
from fitb.config import Geometry, ObjectiveConfig, SpeedConfig
from fitb.config.checks import check_range
from fitb.model.flops import BERT_BASE


@dataclass(frozen=True)
class StepBenchConfig:
    """Tokens per second of a training step, its parts, and MFU against the measured peak.

    Precision, micro-batch and dropout are those that a run of the presets has on this machine.

    Args:
        precision: arithmetic of the student and of the teacher, as in training.
        length: tokens per row.
        micro_batch: rows per forward pass, as in training.
        dropout: dropout probability of the student.
        grad_accum: micro-batches per step.
        baseline: also run the unfused baseline, in turn.
        baseline_precision: arithmetic of the unfused baseline; null takes `precision`.
        switches: also run with each switch of `speed` inverted, in turn.
        kernels: also count launches and waits of a step, name its slowest kernels, and time what
            the host spends on a micro-batch and on a step, with models that are 2 wide per head.
        repeats: timed turns of each variant.
        steps: training steps per turn; null takes 2 on a CPU, 20 on a GPU.
        processes: local processes to start, unless srun or torchrun started this one.
        shards: shard set with rows of this length; null prepares one from docstrings.
        ds_config: DeepSpeed configuration, as in training.
        teacher: geometry of the teacher with random weights; BERT-base by default.
        student: geometry of the student with random weights; TinyBERT-4 by default.
        objective: loss weights, as in training.
        speed: execution settings, as in training.
        json: print one JSON object.
    """

    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    length: int = 128
    micro_batch: int | None = None
    dropout: float = 0.0
    grad_accum: int = 1
    baseline: bool = False
    baseline_precision: Literal["fp16", "bf16", "fp32"] | None = None
    switches: bool = False
    kernels: bool = False
    repeats: int = 3
    steps: int | None = None
    processes: int = 1
    shards: str | None = None
    ds_config: str = "zero2"
    teacher: Geometry = field(default_factory=lambda: BERT_BASE)
    student: Geometry = field(default_factory=Geometry)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    json: bool = False

    def __post_init__(self) -> None:
        counts = ("length", "micro_batch", "grad_accum", "repeats", "steps", "processes")
        check_range("", self, *counts, low=1)
        check_range("", self, "dropout", low=0, high=1)
        terms = self.objective
        ordinary = all(
            (weight > 0) == (term != "relation") for term, weight in terms.weights.items()
        )
        ordinary &= terms.temperature == 1 and terms.form == "masked_mean"
        if self.baseline and not ordinary:
            raise ConfigError(
                f"{terms} with --baseline; expected all five terms, temperature 1 and form"
                " masked_mean, as the unfused baseline has; leave out --baseline"
            )


@dataclass(frozen=True)
class CommBenchConfig:
    """Latency and bandwidth of the collectives that a training step uses.

    Args:
        mb: message sizes in MB (1e6 bytes); TinyBERT-4's gradients are 31 MB in 16 bits, 62 MB in
            fp32.
        precision: dtype of the messages.
        processes: local processes to start, unless srun or torchrun started this one.
        repeats: timed calls per collective and message size.
        json: print one JSON object.
    """

    mb: list[float] = field(default_factory=lambda: [1.0, 16.0, 62.0])
    precision: Literal["fp16", "bf16", "fp32"] = "fp32"
    processes: int = 2
    repeats: int = 10
    json: bool = False

    def __post_init__(self) -> None:
        check_range("", self, "processes", "repeats", low=1)
        if min(self.mb, default=0) <= 0:
            raise ConfigError(f"mb={self.mb}; at least one size, each above 0")


@dataclass(frozen=True)
class InferBenchConfig:
    """Texts per second by batch size, time of the logits by scorer, requests per second served.

    Args:
        batches: texts per forward pass, one blank each; tokenisation is timed too.
        texts: number of texts per run.
        words: words per text.
        model: geometry of the student with random weights; TinyBERT-4 by default.
        teacher: geometry of the teacher with random weights; BERT-base by default.
        scorer_batches: rows per call in the comparison of scorers; ratios are of the first.
        repeats: timed runs of each.
        clients: concurrent clients of the server, one request in flight each; 0 skips the server.
        load_s: length of each measurement of the server, in seconds.
        server_threads: threads of the server's model; 0 leaves the number to PyTorch.
        json: print one JSON object.
    """

    batches: list[int] = field(default_factory=lambda: [1, 8, 64])
    texts: int = 192
    words: int = 24
    model: Geometry = field(default_factory=Geometry)
    teacher: Geometry = field(default_factory=lambda: BERT_BASE)
    scorer_batches: list[int] = field(default_factory=lambda: [1, 32])
    repeats: int = 5
    clients: int = 64
    load_s: float = 8.0
    server_threads: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        check_range("", self, "texts", "words", "repeats", low=1)
        check_range("", self, "clients", "server_threads", low=0)
        for name in ("batches", "scorer_batches"):
            if min(getattr(self, name), default=0) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; at least one, each at least 1")
        if not self.load_s > 0:
            raise ConfigError(f"load_s={self.load_s}; above 0")


@dataclass(frozen=True)
class DataBenchConfig:
    """Speed and memory of preparation, and of reading rows.

    Args:
        mb: size of the corpus in MB (1e6 bytes) for the throughput of preparation.
        memory_mb: size in MB of the smallest of three corpora whose peak memory is measured.
        repeats: timed runs of each figure.
        json: print one JSON object.
    """

    mb: float = 96.0
    memory_mb: float = 16.0
    repeats: int = 3
    json: bool = False

    def __post_init__(self) -> None:
        check_range("", self, "mb", "memory_mb", "repeats", low=1)
