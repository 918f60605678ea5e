"""Shard sets written by hand, of made-up rows."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from fitb.corpus.chunk import Columns
from fitb.corpus.shards import write_shard
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
    manifest = {"format_version": 2, "fingerprint": "f", "length": columns.input_ids.shape[1]}
    rest = {"shards": entries, "splits": {split: {}}, "tokenizer": {}, "settings": {}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **rest}))
