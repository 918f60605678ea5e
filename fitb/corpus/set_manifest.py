"""The last file of a shard set: what it is, how it was made, and what was left out."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections import Counter
from dataclasses import replace
from typing import Any

import fitb
from fitb.base.errors import DataError
from fitb.base.fsio import fsync_dir, read_json, write_json
from fitb.base.redact import redacted
from fitb.corpus.dropped import join_dropped
from fitb.corpus.sorted_runs import SPLITS
from fitb.corpus.tokenizer import describe_tokenizer
from fitb.corpus.work import Work, too_few
from fitb.shards.manifest import ALGORITHMS, FORMAT_VERSION, MANIFEST, fingerprint_of

INPUTS = "inputs.json"
DROPPED_FILE = "dropped.parquet"
LIBRARIES = ("datasets", "numpy", "pyarrow", "tokenizers")
NUM_SAMPLES = 5

_MANY_UNKNOWN = 0.005  # of all tokens

logger = logging.getLogger(__name__)


def write_manifest(work: Work) -> None:
    """Complete work.set: tokenizer, inputs, what was dropped, and the manifest.

    Raises: DataError where a shard is missing or a split has no row.
    """
    pieces = {}
    for shard in work.shards:
        if not work.piece(shard).exists():
            raise DataError(f"shard {shard.name} is not written; start again")
        pieces[shard] = read_json(work.piece(shard))
    entries = [piece["entry"] for piece in pieces.values() if piece["entry"]]
    dropped = Counter(work.totals.dropped)
    for piece in pieces.values():
        dropped.update(piece["dropped"])
    for split in SPLITS:
        if not any(entry["split"] == split for entry in entries):
            totals = replace(work.totals, dropped=dropped)
            raise DataError(too_few(split, totals, work.config))
    shutil.copytree(work.tokenizer, work.set / "tokenizer", dirs_exist_ok=True)
    write_json(work.set / INPUTS, [redacted(name) for name in work.plan.files])
    runs = [work.run(input_split).with_suffix(".arrow") for input_split in work.plan.splits]
    parts = [work.piece(shard).with_suffix(".arrow") for shard in work.shards]
    join_dropped(work.set / DROPPED_FILE, [*runs, *parts])
    tokenizer = describe_tokenizer(work.set / "tokenizer")
    content = {"length": work.config.length, "shards": entries, "tokenizer": tokenizer}
    splits = {split: _totals(pieces, split) for split in SPLITS}
    statistics = _statistics(splits, work.config.length)
    manifest = {
        "format": "fitb-shards",
        "format_version": FORMAT_VERSION,
        "fitb_version": fitb.__version__,
        "algorithms": ALGORITHMS,
        "fingerprint": fingerprint_of(content),
        "corpus_fingerprint": work.totals.fingerprint,
        "length": work.config.length,
        "splits": splits,
        "shards": entries,
        "tokenizer": tokenizer,
        "statistics": statistics,
        "dropped": dict(sorted(dropped.items())),
        "changed": dict(sorted(work.totals.changed.items())),
        "sample": [text for piece in pieces.values() for text in piece["sample"]][:NUM_SAMPLES],
        "settings": {**work.settings, "files": [redacted(name) for name in work.settings["files"]]},
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    if statistics["unknown_share"] > _MANY_UNKNOWN:
        logger.warning(
            "%.1f %% of the tokens are [UNK], which nobody can learn to fill: name a --tokenizer of"
            " this language, or a larger --vocab_size",
            100 * statistics["unknown_share"],
        )
    write_json(work.set / MANIFEST, manifest)
    fsync_dir(work.set)


def _totals(pieces: dict[Any, Any], split: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for shard, piece in pieces.items():
        if shard.split == split and piece["entry"]:
            total.update({"documents": piece["entry"]["documents"], **piece["counts"]})
    return dict(total)


def _statistics(splits: dict[str, dict[str, int]], length: int) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for counts in splits.values():
        total.update(counts)
    return {
        "documents": total["documents"],
        "tokens": total["tokens"],
        "rows": total["rows"],
        "unknown_share": round(total["unknown_tokens"] / total["tokens"], 6),
        "padding_share": round(total["padding_tokens"] / (total["rows"] * length), 6),
        "mean_document_tokens": round(total["tokens"] / total["documents"], 2),
    }
