"""Settings of `fitb evaluate` and `fitb compare`; no torch, so that flags are checked fast."""

from __future__ import annotations

from dataclasses import dataclass, field

from fitb.base.errors import ConfigError
from fitb.config import MaskConfig


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Which rows, masked how.

    Args:
        shards: folder that `fitb prepare` wrote, or its URL.
        sets: several of them by name (--sets.general A --sets.mine B) in place of `shards`; they
            share a tokenizer.
        split: of the shards.
        rows: rows used, spread evenly over the split; 0 means all.
        batch: rows per forward pass.
        seed: of the masks and of resampling.
        masks: masks of seed, seed + 1, ... to try, for the spread over them; metrics, intervals and
            categories are those of the first.
        mask: how rows are masked.
        teacher: model that the predictions of the others are compared with.
        originals: where the tokenizer lowers capitals, read the input of the shards again to tell
            names; it takes as long as reading that input.
        resamples: of documents, for intervals and p-values.
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
    teacher: str | None = None
    originals: bool = True
    resamples: int = 1000
    json: bool = False

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ConfigError(f"rows={self.rows}; at least 0, where 0 means all")
        for name in ("batch", "masks", "resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; at least 1")

    def named_sets(self) -> dict[str, str]:
        """Return the folder or URL of each set by its name; that of a single one is its split."""
        return self.sets or {self.split: self.shards}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(MeasureConfig):
    """Evaluate a model on fixed masks, beside baselines.

    Models are Hugging Face folders or hub names with a trained MLM head, runs of `fitb train`, or
    their checkpoints.

    Args:
        model: to evaluate.
        models: several, or globs of several, in place of `model`; needs `out`.
        out: folder that gets a file for each model; what is there is not done again, and once all
            are there they are printed as one table.
        share: do every N-th of the models from the I-th on, as I/N; as an array of Slurm's each
            task takes its own share.
        frozen: the model before training, for what was gained, lost and moved.
        control: the same student trained without a teacher.
        baselines: evaluate token frequencies and the model with random weights as well.
        unigram_rows: training rows whose tokens are counted for the frequencies, spread evenly; 0
            means all.
    """

    model: str | None = None
    models: list[str] = field(default_factory=list)
    out: str | None = None
    share: str | None = None
    frozen: str | None = None
    control: str | None = None
    baselines: bool = True
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
        if self.unigram_rows < 0:
            raise ConfigError(f"unigram_rows={self.unigram_rows}; at least 0, where 0 means all")

    def sources(self) -> dict[str, str]:
        """Return what is loaded, by role."""
        roles = {role: getattr(self, role) for role in ("model", "frozen", "control", "teacher")}
        return {role: source for role, source in roles.items() if source is not None}


@dataclass(frozen=True, kw_only=True)
class CompareConfig(MeasureConfig):
    """Compare two models on the same rows and masks.

    Args:
        models: the two: folders, hub names, runs, or checkpoints of runs.
    """

    models: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.models) != 2:
            raise ConfigError(f"models={self.models}; two models: fitb compare A B")

    def sources(self) -> dict[str, str]:
        """Return what is loaded, by role."""
        roles = {"A": self.models[0], "B": self.models[1]}
        return roles | ({"teacher": self.teacher} if self.teacher else {})
