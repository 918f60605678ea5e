"""Shard sets written by hand, of made-up rows."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from fitb.corpus.chunk import Columns
from fitb.corpus.manifest import fingerprint_of
from fitb.corpus.shards import write_shard
from fitb.corpus.tokenizer import tokenizer_fingerprint
from fitb.fsio import sha256_file


def random_columns(num_rows: int, length: int, vocab_size: int = 300) -> Columns:
    draw = np.random.default_rng(0)
    return Columns(
        input_ids=draw.integers(0, vocab_size, (num_rows, length)),
        word_starts=draw.random((num_rows, length)) < 0.5,
        doc_begin=np.arange(num_rows),
        doc_end=np.arange(num_rows) + 1,
        char_begin=np.arange(num_rows, dtype=np.int32),
        char_end=np.arange(num_rows, dtype=np.int32) + 9,
        offset_begin=draw.integers(0, 99, (num_rows, length), dtype=np.int32),
        offset_end=draw.integers(0, 99, (num_rows, length), dtype=np.int32),
    )


def write_set(folder: Path, columns: Columns, shard_rows: int, split: str = "train") -> None:
    """Write a set by hand, with one split."""
    entries = []
    names = [column.name for column in fields(Columns)]
    for number, begin in enumerate(range(0, len(columns), shard_rows)):
        part = Columns(*(getattr(columns, name)[begin : begin + shard_rows] for name in names))
        path = folder / f"{split}-{number:05d}.arrow"
        size = write_shard(path, part, vocab_size=300, with_offsets=split == "validation")
        entry = {"file": path.name, "split": split, "rows": len(part), "bytes": size}
        entries.append({**entry, "sha256": sha256_file(path)})
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    tokenizer = {"fingerprint": tokenizer_fingerprint(folder / "tokenizer"), "vocab_size": 300}
    manifest = {
        "format_version": 2,
        "length": columns.input_ids.shape[1],
        "shards": entries,
        "splits": {split: {"rows": len(columns)}},
        "tokenizer": {**tokenizer, "files": ["tokenizer.json"]},
        "settings": {},
    }
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the fingerprint of what it says."""
    manifest = {**manifest, "fingerprint": fingerprint_of(manifest)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
