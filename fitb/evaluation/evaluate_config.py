"""Configurations of `fitb evaluate` and `fitb compare`; importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fitb.base.errors import ConfigError
from fitb.config import AlgorithmsConfig, MaskConfig
from fitb.config.checks import check_range
from fitb.rundir import names
from fitb.rundir.checkpoints import checkpoint_of

ROLES = ("model", "unigram", "untrained", "frozen", "control", "teacher")  # rows of the table


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Rows to evaluate on, and how they are masked.

    Args:
        shards: folder that `fitb prepare` wrote, or its URL.
        sets: several shard sets by name (--sets.general A --sets.mine B) in place of `shards`; they
            must share a tokenizer.
        split: split of the shards.
        rows: number of rows used, spread evenly over the split; 0 means all.
        batch: rows per forward pass.
        seed: seed of the masks and of the bootstrap.
        masks: number of masks (seeds seed, seed + 1, ...) for the spread over masks; metrics,
            intervals and categories are those of the first.
        mask: masking of the rows.
        mask_version: version of the choice of masked positions, as `algorithms.masks`; null takes
            that of the (first) model's run, or without a run the newest.
        teacher: model whose predictions the others are compared with.
        originals: with a lowercasing tokenizer, read the input of the shards again to recognise
            names; this takes as long as reading that input.
        resamples: number of bootstrap resamples of documents, for intervals and p-values.
        json: print JSON.
    """

    shards: str = "data/shards"
    sets: dict[str, str] = field(default_factory=dict)
    split: str = "validation"
    rows: int = 0
    batch: int = 64
    seed: int = 0
    masks: int = 1
    mask: MaskConfig = field(default_factory=MaskConfig)
    mask_version: int | None = None
    teacher: str | None = None
    originals: bool = True
    resamples: int = 1000
    json: bool = False

    def __post_init__(self) -> None:
        check_range("", self, "rows", low=0)
        check_range("", self, "batch", "masks", "resamples", low=1)
        check_range("", self, "mask_version", low=1, high=AlgorithmsConfig.masks + 1)

    def named_sets(self) -> dict[str, str]:
        """Return the folder or URL of each set by name; a single set is named after its split."""
        return self.sets or {self.split: self.shards}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(MeasureConfig):
    """Evaluate a model on fixed masks, beside baselines.

    Models are Hugging Face folders or hub names with a trained MLM head, runs of `fitb train`, or
    their checkpoints.

    Args:
        model: model to evaluate.
        models: several models or glob patterns, in place of `model`; needs `out`.
        out: folder for one result file per model; existing results are kept, and all of them are
            printed as one table.
        share: evaluate every N-th model from the I-th on, as I/N; a task of a Slurm array takes
            its own share without this flag.
        frozen: the model before training, to report gains, losses and the drift of embeddings.
        control: the same student trained without a teacher.
        baselines: also evaluate token frequencies and the model with random weights.
        pseudo_rows: number of rows, spread evenly, of which pseudo-perplexity and bits per byte are
            measured, at one forward pass per token; 0 measures none.
        unigram_rows: number of training rows whose tokens are counted for the frequencies, spread
            evenly; 0 means all.
    """

    model: str | None = None
    models: list[str] = field(default_factory=list)
    out: str | None = None
    share: str | None = None
    frozen: str | None = None
    control: str | None = None
    baselines: bool = True
    pseudo_rows: int = 0
    unigram_rows: int = 1_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (not self.models):
            raise ConfigError(
                f"model={self.model} and models={self.models}; give one of them: --model PATH, or"
                " --models+=PATH once for each"
            )
        if self.models and self.out is None:
            raise ConfigError(f"models={self.models} without out; name a folder with --out")
        check_range("", self, "unigram_rows", "pseudo_rows", low=0)

    def sources(self) -> dict[str, str]:
        """Return folder or hub name of each model to load, by role."""
        roles = {role: getattr(self, role) for role in ("model", "frozen", "control", "teacher")}
        return {role: source for role, source in roles.items() if source is not None}


@dataclass(frozen=True, kw_only=True)
class CompareConfig(MeasureConfig):
    """Compare two models on the same rows and masks.

    Args:
        models: two folders, hub names, runs, or checkpoints of runs.
    """

    models: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.models) != 2:
            raise ConfigError(f"models={self.models}; expected two: fitb compare A B")

    def sources(self) -> dict[str, str]:
        """Return folder or hub name of each model to load, by role."""
        roles = {"A": self.models[0], "B": self.models[1]}
        return roles | ({"teacher": self.teacher} if self.teacher else {})


def masks_of(source: str) -> int:
    """Return the version of the masks of a run, its checkpoint or its export; else the newest."""
    checkpoint, folder = checkpoint_of(source), Path(source).absolute()
    if checkpoint is None and folder.name != names.EXPORT:
        return AlgorithmsConfig.masks
    run = checkpoint.parent.parent if checkpoint else folder.parent
    try:
        config = yaml.safe_load((run / names.CONFIG).read_text())
        return int((config.get("algorithms") or {}).get("masks", 1))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return AlgorithmsConfig.masks
