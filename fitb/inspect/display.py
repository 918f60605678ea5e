"""An inspection for people: aligned lines for a terminal, or a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fitb.templates import render_template

_BAR = 40
_NAMES = {"document_tokens": "tokens of a document", "words_per_row": "words of a row"}


def distributions(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return (what, description) of each distribution that is known."""
    numbers = result["statistics"]
    return [(name, numbers[key]) for key, name in _NAMES.items() if numbers[key]]


def rows_of_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) of all that is one line, as the terminal and the page show it."""
    facts, numbers, masks = result["facts"], result["statistics"], result["masks"]
    counts = facts["splits"][facts["split"]]
    tokenizer = "" if facts["tokenizer_matches"] else ", NOT the one beside the shards"
    trips = result["round_trips"]
    rows = [
        ("shards", f"{facts['shards']}, {facts['format']}, by fitb {facts['fitb_version']}"),
        ("fingerprint", facts["fingerprint"]),
        ("tokenizer", f"{facts['tokenizer_fingerprint']}{tokenizer}"),
        ("vocabulary", f"{facts['vocab_size']:,}"),
        ("split", f"{facts['split']}, {facts['num_shards']:,} files, {facts['bytes']:,} bytes"),
        ("rows", f"{counts['rows']:,} of {facts['length']} tokens"),
        ("tokens", f"{counts['tokens']:,}"),
        ("documents", f"{counts['documents']:,}"),
        ("sample", f"{numbers['sample_rows']:,} rows, {numbers['sample_tokens']:,} tokens"),
        ("unknown", f"{numbers['unknown_share']:.4%} of tokens"),
        ("split words", f"{numbers['split_share']:.2%} of words"),
        ("pieces", f"{numbers['pieces_per_word']:.3f} per word"),
        (
            "masks",
            f"{masks['strategy']}, {masks['fraction']:.0%} asked, {masks['coverage']:.2%} of"
            f" ordinary tokens; {masks['slots_mean']:.2f} +- {masks['slots_std']:.2f} a row",
        ),
        (
            "slots show",
            f"[MASK] {masks['mask_share']:.2%}, another token {masks['random_share']:.2%}",
        ),
        ("round trips", f"{trips['failures']:,} of {trips['segments']:,} segments differ"),
    ]
    if model := result["model"]:
        shape = " x ".join(str(size) for size in model["logits_shape"])
        rows += [
            ("model", f"{model['model']}: {model['num_parameters']:,} parameters"),
            ("logits", f"{shape}, {model['logits_dtype']}"),
            ("loss", f"{model['loss']:.4f} nats; log(vocabulary) is {model['log_vocab']:.4f}"),
        ]
    return rows


def as_text(result: dict[str, Any]) -> str:
    """Render an inspection for a terminal."""
    lines = [f"{name:12} {value}" for name, value in rows_of_facts(result)]
    for name, numbers in distributions(result):
        lines += ["", *_distribution(name, numbers)]
    if most_split := result["statistics"]["most_split"]:
        lines += ["", "most split words"]
        width = max(len(entry["word"]) for entry in most_split)
        lines += [
            f"  {entry['word']:{width}}  {entry['count']:5} times  {' '.join(entry['pieces'])}"
            for entry in most_split
        ]
    for failure in result["round_trips"]["first"]:
        lines += [
            "",
            f"row {failure['row']} reads differently from piece {failure['place']} of a document",
            f"  before  {' '.join(failure['before'])}",
            f"  after   {' '.join(failure['after'])}",
        ]
    for example in result["examples"]:
        lines += ["", f"row {example['row']}, seed {result['seed']}", f"  {example['masked']}"]
        lines += [
            f"  {label['place']:4}  {label['shown']} <- {label['label']}"
            for label in example["labels"]
        ]
    return "\n".join(lines)


def _distribution(name: str, numbers: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{name}: mean {numbers['mean']:,}, std {numbers['std']:,},"
        f" {numbers['min']:,} .. {numbers['max']:,}"
    )
    percentiles = numbers["percentiles"].items()
    yield "  " + "  ".join(f"p{percent} {value:,.0f}" for percent, value in percentiles)
    most = max(entry["count"] for entry in numbers["histogram"])
    for entry in numbers["histogram"]:
        bar = "#" * round(_BAR * entry["count"] / most)
        yield f"  {entry['begin']:8,} .. {entry['end'] - 1:<8,} {entry['count']:9,} {bar}".rstrip()


def as_page(result: dict[str, Any]) -> str:
    """Render an inspection as a self-contained HTML page."""
    return render_template(
        "inspect/inspection.html.j2",
        result=result,
        facts=rows_of_facts(result),
        distributions=distributions(result),
    )
