"""Model card of an exported folder: sizes, provenance, metrics and how to use the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitb.base.errors import DataError
from fitb.base.templates import render_template
from fitb.config import Config, Geometry
from fitb.model.positions import trained_length

_UNTRAINED = "{}, of which those from {} on were never trained"
_PAIRS = "0 alone: pairs of texts were never seen"


@dataclass(frozen=True)
class Metric:
    """A metric with its 95 % confidence interval, None if there is no interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A metric of the fp32 and the int8 model, and int8 - fp32 with its 95 % interval."""

    metric: str
    fp32: float
    int8: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Card:
    """Content of a model card; empty sections are left out.

    Args:
        name: title.
        mask_token: mask token of the tokenizer.
        model: sizes, by label.
        training: teacher, masks, steps and so on, by label.
        data: shards and the statistics of their corpus, by label.
        metrics: metrics of this model.
        measured_on: rows and masks of those metrics.
        code: commit and versions, by label.
        onnx: largest absolute difference of a logit from PyTorch's; None without an ONNX file.
        int8: whether there is an int8 ONNX file.
        cost: metrics of the int8 model next to those of the fp32 model.
        cost_on: rows and masks of that comparison.
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
    return render_template("infer/card.md.j2", card=card).rstrip() + "\n"


def model_facts(config: Any, num_parameters: int) -> dict[str, Any]:
    """Return the sizes of a BERT by label.

    Args:
        config: BertConfig of the model.
        num_parameters: number of its parameters.
    """
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
    """Return how a run of `fitb train` trained its student, by label.

    Args:
        config: configuration of the run.
        step: optimiser step of the weights; None if unknown.
    """
    terms = config.objective
    weights = {term: weight for term, weight in terms.weights.items() if weight}
    teacher = config.model.teacher
    return {
        "teacher": "none: masked tokens alone" if teacher is None else _source(teacher),
        "student began as": _source(config.model.student, config.model.init),
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
    """Return the training data of a model, by label.

    Args:
        fingerprint: fingerprint of the shards.
        manifest: manifest of the same shards; None if they cannot be read.
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
    """Return commit and versions, by label, from `describe_code` or an entry of provenance.json."""
    changed = " with local changes" if code.get("diff") else ""
    commit = {"commit": f"{code['commit']}{changed}"} if code.get("commit") else {}
    return {**commit, "fitb": code.get("fitb", "unknown"), **code.get("packages", {})}


def metrics_of_evaluation(result: Any, where: str) -> tuple[list[Metric], str]:
    """Return a model's metrics from the JSON of `fitb evaluate`, and the rows they are of.

    Args:
        result: parsed JSON.
        where: file name for messages.
    Raises: DataError if `result` has another form.
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
            f"{found['num_rows']:,} rows and {found['num_slots']:,} masked positions of {name},"
            f" shards {found['fingerprint'][:12]}, masks {mask['strategy']} at"
            f" {mask['fraction']:.0%}, seed {result['seed']}"
        )
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise DataError(
            f"{where} is not what `fitb evaluate --json` prints ({type(error).__name__}: {error});"
            " write it again"
        ) from error
    return metrics, on


def _source(source: Geometry | str, init: str = "random") -> str:
    if isinstance(source, str):
        return Path(source).name if Path(source).is_absolute() else source
    weights = "random weights" if init == "random" else "begun from the teacher"
    return (
        f"{weights}: {source.num_hidden_layers} layers of {source.hidden_size},"
        f" {source.num_attention_heads} heads, inner size {source.intermediate_size}"
    )
