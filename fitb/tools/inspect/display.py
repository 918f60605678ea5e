"""Rendering of an inspection as text for a terminal or as a self-contained HTML page."""

from __future__ import annotations

from typing import Any

from fitb.base.templates import render_template

_NAMES = {"document_tokens": "tokens per document", "words_per_row": "words per row"}


def rows_of_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) of all one-line facts."""
    facts, numbers, masks = result["facts"], result["statistics"], result["masks"]
    counts = facts["splits"][facts["split"]]
    tokenizer = "" if facts["tokenizer_matches"] else ", NOT the one stored with the shards"
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
        ("subwords", f"{numbers['pieces_per_word']:.3f} per word"),
        (
            "masks",
            f"{masks['strategy']}, {masks['fraction']:.0%} requested, {masks['coverage']:.2%} of"
            f" ordinary tokens; {masks['slots_mean']:.2f} +- {masks['slots_std']:.2f} masked"
            " positions per row",
        ),
        (
            "replaced by",
            f"[MASK] {masks['mask_share']:.2%}, another token {masks['random_share']:.2%}",
        ),
        ("never masked", _never_masked(numbers["never_masked"])),
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


def _never_masked(found: dict[str, Any]) -> str:
    named = ", ".join(entry["word"] for entry in found["words"])
    return f"{found['count']:,} words longer than their row's masks" + (f": {named}" * bool(named))


def as_text(result: dict[str, Any]) -> str:
    """Render an inspection for a terminal."""
    return _render("tools/inspect/inspection.txt.j2", result).rstrip("\n")


def as_page(result: dict[str, Any]) -> str:
    """Render an inspection as a self-contained HTML page."""
    return _render("tools/inspect/inspection.html.j2", result)


def _render(template: str, result: dict[str, Any]) -> str:
    numbers = result["statistics"]
    distributions = [(name, numbers[key]) for key, name in _NAMES.items() if numbers[key]]
    facts = rows_of_facts(result)
    return render_template(template, result=result, facts=facts, distributions=distributions)
