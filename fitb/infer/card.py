"""The model card of an exported folder: what the model is, where it comes from, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from fitb.base.errors import DataError
from fitb.config import Config, Geometry
from fitb.model.positions import trained_length

_UNTRAINED = "{}, of which those from {} on were never trained"
_PAIRS = "0 alone: pairs of texts were never seen"


@dataclass(frozen=True)
class Metric:
    """A figure, and its 95 % interval where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What 8-bit products cost: a metric of both, and int8 - fp32 with its 95 % interval."""

    metric: str
    fp32: float
    int8: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Card:
    """What a card says; what is empty is left out.

    Args:
        name: its title.
        mask_token: as the tokenizer writes a blank.
        model: sizes, by name.
        training: teacher, masks, steps and the like, by name.
        data: shards and the statistics of their corpus, by name.
        metrics: figures of this model.
        measured_on: what those were taken on.
        code: commit and versions, by name.
        onnx: largest difference of a logit from PyTorch's; None where no file was written.
        int8: whether there is a file of 8-bit products.
        cost: what those cost.
        cost_on: what that was taken on.
    """

    name: str
    mask_token: str
    model: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    measured_on: str = ""
    code: Mapping[str, Any] = field(default_factory=dict)
    onnx: float | None = None
    int8: bool = False
    cost: Sequence[Comparison] = ()
    cost_on: str = ""


def model_card(card: Card) -> str:
    """Render a card as the README.md of a Hugging Face folder."""
    import jinja2

    source = (resources.files("fitb.infer") / "card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(card=card).rstrip() + "\n"


def model_facts(config: Any, num_parameters: int) -> dict[str, Any]:
    """Return the sizes of a BERT of this configuration."""
    length, positions = trained_length(config), config.max_position_embeddings
    return {
        "type": "BERT encoder with its MLM head",
        "parameters": f"{num_parameters:,}",
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "inner size": config.intermediate_size,
        "vocabulary": f"{config.vocab_size:,}",
        "tokens of a text at most": length,
        **({} if length == positions else {"positions": _UNTRAINED.format(positions, length)}),
    }


def training_facts(config: Config, step: int | None) -> dict[str, Any]:
    """Return how a run of `fitb train` made its student.

    Args:
        step: of the weights; None where it is not known.
    """
    terms = config.objective
    names = ("embedding", "hidden", "attention", "logits", "mlm")
    weights = {name: getattr(terms, name) for name in names if getattr(terms, name)}
    teacher = config.model.teacher
    return {
        "teacher": "none: masked tokens alone" if teacher is None else _source(teacher),
        "student began as": _source(config.model.student),
        **({"token types": _PAIRS} if isinstance(config.model.student, Geometry) else {}),
        "objective": ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        if teacher is not None
        else "mlm",
        "masks": f"{config.mask.strategy}, {config.mask.fraction:.0%} of tokens",
        "step": f"{config.steps} at most" if step is None else f"{step} of {config.steps}",
        "rows of a step": config.global_batch,
        "precision": config.precision,
        "seed": config.seed,
    }


def data_facts(fingerprint: str, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a model was trained on.

    Args:
        fingerprint: of the shards.
        manifest: of the same shards; None where they cannot be reached.
    """
    found: dict[str, Any] = {"shards (fingerprint)": fingerprint}
    if manifest is not None:
        found["tokens in a row"] = manifest["length"]
        found["tokenizer (fingerprint)"] = manifest["tokenizer"]["fingerprint"]
        found["source"] = manifest.get("settings", {}).get("source", "")
        for name, value in manifest.get("statistics", {}).items():
            words = name.replace("_", " ")
            found[words] = f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return {name: value for name, value in found.items() if value != ""}


def code_facts(code: Mapping[str, Any]) -> dict[str, Any]:
    """Return commit and versions of what describe_code said, or a line of provenance.json."""
    changed = " with local changes" if code.get("diff") else ""
    commit = {"commit": f"{code['commit']}{changed}"} if code.get("commit") else {}
    return {**commit, "fitb": code.get("fitb", "unknown"), **code.get("packages", {})}


def metrics_of_evaluation(result: Any, where: str) -> tuple[list[Metric], str]:
    """Return the metrics of the model in what `fitb evaluate --json` printed, and on what.

    Args:
        where: the file, for messages.
    Raises: DataError where it is something else.
    """
    try:
        if "sets" in result:  # by set, and in each by model
            name, found = next(iter(result["sets"].items()))
            values = found["models"]["model"]["metrics"]
        else:
            name, found, values = result["split"], result, result["metrics"]
        metrics = [
            Metric(key, *(each[part] for part in ("value", "low", "high")))
            for key, each in values.items()
            if each["value"] is not None
        ]
        mask = result["mask"]
        on = (
            f"{found['num_rows']:,} rows and {found['num_slots']:,} slots of {name}, shards"
            f" {found['fingerprint'][:12]}, masks {mask['strategy']} at {mask['fraction']:.0%},"
            f" seed {result['seed']}"
        )
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise DataError(
            f"{where} is not what `fitb evaluate --json` prints ({type(error).__name__}: {error});"
            " write it again"
        ) from error
    return metrics, on


def _source(source: Geometry | str) -> str:
    if isinstance(source, str):
        return Path(source).name if Path(source).is_absolute() else source
    return (
        f"random weights: {source.num_hidden_layers} layers of {source.hidden_size},"
        f" {source.num_attention_heads} heads, inner size {source.intermediate_size}"
    )
