"""The model card of an exported folder: what the model is, where it comes from, how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitb.config import Config, Geometry
from fitb.errors import DataError
from fitb.model.positions import trained_length

_LONGEST = "tokens of a text at most"
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
    return "\n".join(_lines(card)).rstrip() + "\n"


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
        _LONGEST: length,
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


def _lines(card: Card) -> Iterator[str]:
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: fill-mask"
    yield "tags: [bert, fill-mask, fitb]"
    yield "---"
    yield f"# {card.name}"
    yield ""
    yield (
        f"Fills blanks: where a text says {card.mask_token}, the model says which words fit."
        " Made by fitb, which distils BERT into smaller models."
    )
    yield ""
    yield from _usage(card)
    yield from _table("Model", card.model)
    yield from _table("Training", card.training)
    yield from _table("Data", card.data)
    yield from _metrics(card)
    yield from _cost(card)
    yield from _table("Code", card.code)
    yield from _limits(card)


def _usage(card: Card) -> Iterator[str]:
    yield "```python"
    yield "from transformers import pipeline"
    yield ""
    yield 'fill = pipeline("fill-mask", model="path/to/this/folder")'
    yield f'for found in fill("The {card.mask_token} is empty.", top_k=3):'
    yield "    print(f\"{found['score']:.1%} {found['token_str']}\")"
    yield "```"
    yield ""
    if card.onnx is not None:
        rounded = ", and `model-int8.onnx` with 8-bit products" if card.int8 else ""
        files = f"`model.onnx`{rounded}"
        yield (
            f"For onnxruntime: {files}. Inputs, int64: `input_ids` and `attention_mask` (B, L),"
            f" L at most {card.model[_LONGEST]}, and `slots` (B, K), the places of the blanks, -1"
            " where a row has fewer than K; output `logits` (M, V) of the blanks, row by row. In"
            f" fp32 a logit differs from PyTorch's by at most {card.onnx:.1e} on random rows."
        )
        yield ""


def _table(title: str, facts: Mapping[str, Any]) -> Iterator[str]:
    if facts:
        yield f"## {title}"
        yield ""
        yield "| | |"
        yield "|---|---|"
        yield from (f"| {name} | {value} |" for name, value in facts.items())
        yield ""


def _metrics(card: Card) -> Iterator[str]:
    if card.metrics:
        yield "## Metrics"
        yield ""
        yield f"On {card.measured_on}."
        yield ""
        yield "| | value | 95 % interval |"
        yield "|---|---|---|"
        for each in card.metrics:
            known = each.low is not None and each.high is not None
            interval = f"{each.low:.4f} to {each.high:.4f}" if known else ""
            yield f"| {each.name} | {each.value:.4f} | {interval} |"
        yield ""


def _cost(card: Card) -> Iterator[str]:
    if card.cost:
        yield "## What 8-bit products cost"
        yield ""
        yield f"On {card.cost_on}; intervals are paired, over documents."
        yield ""
        yield "| | fp32 | int8 | int8 - fp32 | 95 % interval |"
        yield "|---|---|---|---|---|"
        for each in card.cost:
            yield (
                f"| {each.metric} | {each.fp32:.4f} | {each.int8:.4f} | {each.difference:+.4f} |"
                f" {each.low:+.4f} to {each.high:+.4f} |"
            )
        yield ""


def _limits(card: Card) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield "- It knows the words and the bias of the text it was trained on, and no facts for sure."
    yield (
        f"- It was trained to read {card.model[_LONGEST]} tokens at once: cut a longer text around"
        " its blanks, as `fitb fill`, `fitb serve` and `fitb evaluate` do."
    )
    yield "- Each blank is one token; a longer word needs several blanks, or `fitb fill`."
    if not card.metrics:
        yield "- It has not been evaluated here."
    if card.int8:
        yield (
            "- Under int8 the texts of a batch share one scale of activations: answers change a"
            " little with the company."
        )
        if not card.cost:
            yield "- What 8-bit products cost was not measured."
    yield "- Its licence is for you to settle: see those of the teacher and of the text."
