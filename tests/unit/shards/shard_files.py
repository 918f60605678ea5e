"""Shard sets written by hand, of made-up rows."""

import json
from dataclasses import fields

import numpy as np

from fitb.base.fsio import sha256_file
from fitb.shards.manifest import fingerprint_of
from fitb.shards.tokenizer import tokenizer_fingerprint
from fitb.shards.write import Columns, write_documents, write_shard


def random_columns(num_rows, length, vocab_size=300):
    draw = np.random.default_rng(0)
    return Columns(
        input_ids=draw.integers(0, vocab_size, (num_rows, length)),
        word_starts=draw.random((num_rows, length)) < 0.5,
        doc_begin=np.arange(num_rows),
        offset_begin=draw.integers(0, 99, (num_rows, length), dtype=np.int32),
        offset_end=draw.integers(0, 99, (num_rows, length), dtype=np.int32),
    )


def write_set(folder, columns, shard_rows, split="train", vocab_size=300):
    """Write a set by hand, with one split; `shard_rows` is for every shard, or one for each."""
    entries, begin = [], 0
    if isinstance(shard_rows, int):
        shard_rows = [shard_rows] * -(-len(columns) // shard_rows)
    for number, rows in enumerate(shard_rows):
        parts = (getattr(columns, column.name)[begin : begin + rows] for column in fields(Columns))
        part, begin = Columns(*parts), begin + rows
        path = folder / f"{split}-{number:05d}.arrow"
        size = write_shard(path, part, vocab_size=vocab_size, with_offsets=split == "validation")
        entry = {"file": path.name, "split": split, "rows": len(part), "bytes": size}
        entries.append({**entry, "sha256": sha256_file(path)})
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    tokenizer = {"fingerprint": tokenizer_fingerprint(folder / "tokenizer")}
    manifest = {
        "format_version": 2,
        "length": columns.input_ids.shape[1],
        "shards": entries,
        "splits": {split: {"rows": len(columns)}},
        "tokenizer": {**tokenizer, "vocab_size": vocab_size, "files": ["tokenizer.json"]},
        "settings": {},
    }
    write_manifest(folder, manifest)


def write_manifest(folder, manifest):
    """Write a manifest with the fingerprint of what it says."""
    manifest = {**manifest, "fingerprint": fingerprint_of(manifest)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def add_documents(folder, number, **columns):
    """Write the table of a shard's documents, and its entry into the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / f"train-{number:05d}.documents.arrow"
    size = write_documents(path, **columns)
    manifest["shards"][number] |= {
        "documents": len(columns["file"]),
        "documents_file": path.name,
        "documents_bytes": size,
        "documents_sha256": sha256_file(path),
    }
    write_manifest(folder, manifest)


def flip(path, place):
    """Flip a bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
