"""Configurations of the benchmarks; without torch, so that flags and their help come fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fitb.base.errors import ConfigError
from fitb.config import Geometry, ObjectiveConfig, SpeedConfig

BERT_BASE = Geometry(12, 768, 3072, 12)


@dataclass(frozen=True)
class StepBenchConfig:
    """Tokens per second of a training step, its parts, and MFU against the measured peak.

    Args:
        precision: of the student's arithmetic and of the teacher.
        length: tokens in a row.
        micro_batch: rows of a forward pass; null takes 4,096 tokens on a CPU, 32,768 on a GPU.
        grad_accum: micro-batches of a step.
        baseline: run the unfused baseline too, turn by turn.
        baseline_precision: of the unfused baseline; null takes `precision`.
        switches: run with each switch of `speed` the other way round too, turn by turn.
        repeats: turns of each.
        steps: of a run; null takes 2 on a CPU, 20 on a GPU.
        processes: started on this machine, unless srun or torchrun started this one.
        shards: a shard set of this length; null makes one of docstrings.
        ds_config: as in training.
        teacher: BERT-base with random weights, or another geometry.
        student: TinyBERT-4, or another geometry.
        objective: as in training.
        speed: as in training.
        json: print one JSON object.
    """

    precision: Literal["fp16", "bf16", "fp32"] = "bf16"
    length: int = 128
    micro_batch: int | None = None
    grad_accum: int = 1
    baseline: bool = False
    baseline_precision: Literal["fp16", "bf16", "fp32"] | None = None
    switches: bool = False
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
        counts = {
            key: getattr(self, key) for key in ("length", "grad_accum", "repeats", "processes")
        }
        counts |= {key: getattr(self, key) or 1 for key in ("micro_batch", "steps")}
        wrong = [f"{key}={value}" for key, value in counts.items() if value < 1]
        if wrong:
            raise ConfigError(f"{', '.join(wrong)}; each at least 1")
        terms = self.objective
        weights = (terms.embedding, terms.hidden, terms.attention, terms.logits, terms.mlm)
        ordinary = min(weights) > 0 and terms.temperature == 1 and terms.form == "masked_mean"
        if self.baseline and not ordinary:
            raise ConfigError(
                "the unfused baseline has all five terms, temperature 1 and the form masked_mean;"
                f" leave out --baseline for {terms}"
            )


@dataclass(frozen=True)
class CommBenchConfig:
    """Latency and bandwidth of the collectives that a training step uses.

    Args:
        mb: megabytes of each message; TinyBERT-4's gradients are 31 MB in 16 bits, 62 MB in fp32.
        precision: of the numbers in it.
        processes: started on this machine, unless srun or torchrun started this one.
        repeats: of each message.
        json: print one JSON object.
    """

    mb: list[float] = field(default_factory=lambda: [1.0, 16.0, 62.0])
    precision: Literal["fp16", "bf16", "fp32"] = "fp32"
    processes: int = 2
    repeats: int = 10
    json: bool = False

    def __post_init__(self) -> None:
        if min(self.processes, self.repeats, len(self.mb)) < 1 or min(self.mb) <= 0:
            raise ConfigError(
                f"mb={self.mb}, processes={self.processes}, repeats={self.repeats}; each at least 1"
            )


@dataclass(frozen=True)
class InferBenchConfig:
    """Texts per second by batch; logits alone, by scorer; requests per second of the server.

    Args:
        batches: texts per forward pass, tokenising included; one blank in each text.
        texts: of each run.
        words: of each text.
        model: TinyBERT-4 with random weights, or another geometry.
        teacher: BERT-base with random weights, or another geometry, for student_over_teacher.
        scorer_batches: rows per call for the comparison of scorers, the first for the ratios.
        repeats: runs of each.
        clients: of the server, one request each at a time; 0 leaves it out.
        load_s: of each measurement of the server, in seconds.
        server_threads: of its model; 0 leaves the number to PyTorch.
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
        batches = self.batches, self.scorer_batches
        if (
            min(self.texts, self.words, self.repeats, *(min(some, default=0) for some in batches))
            < 1
        ):
            raise ConfigError(
                f"batches={self.batches}, scorer_batches={self.scorer_batches},"
                f" texts={self.texts}, words={self.words}, repeats={self.repeats}; each at least 1"
            )
        if self.clients < 0 or not self.load_s > 0:
            raise ConfigError(
                f"clients={self.clients}, load_s={self.load_s:g}; at least 0, and more than 0"
            )


@dataclass(frozen=True)
class DataBenchConfig:
    """Speed and memory of preparation, and of reading rows.

    Args:
        mb: megabytes of text that are prepared for the ratios.
        memory_mb: megabytes of the smallest of the three corpora whose memory is measured.
        repeats: runs of each figure.
        json: print one JSON object.
    """

    mb: float = 96.0
    memory_mb: float = 16.0
    repeats: int = 3
    json: bool = False

    def __post_init__(self) -> None:
        if min(self.mb, self.memory_mb) < 1 or self.repeats < 1:
            raise ConfigError(
                f"mb={self.mb}, memory_mb={self.memory_mb}, repeats={self.repeats}; each at least 1"
            )
