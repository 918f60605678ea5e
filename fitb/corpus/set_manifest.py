"""The last files of a shard set: its manifest, and the table of dropped documents."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import fitb
from fitb.base.errors import DataError
from fitb.base.fsio import fsync_dir, naming_full_disk, read_json, write_json, written_whole
from fitb.base.redact import redacted
from fitb.corpus.sorted_runs import SPLITS
from fitb.corpus.tokenizer import describe_tokenizer
from fitb.corpus.work import Work
from fitb.shards.manifest import ALGORITHMS, FORMAT_VERSION, INPUTS, MANIFEST, fingerprint_of

DROPPED_FILE = "dropped.parquet"
LIBRARIES = ("datasets", "numpy", "pyarrow", "tokenizers")
NUM_SAMPLES = 5

_MANY_UNKNOWN = 0.005  # share of all tokens
_DROPPED = pa.schema([("file", pa.int32()), ("place", pa.int64()), ("rule", pa.string())])

logger = logging.getLogger(__name__)


def write_dropped(path: Path, rows: Sequence[tuple[int, int, str]]) -> None:
    """Write the dropped documents of an input split or a shard; their text is never kept.

    Args:
        path: Arrow file to write.
        rows: file number, place in the file and rule of each document.
    """
    columns = {name: [row[i] for row in rows] for i, name in enumerate(_DROPPED.names)}
    with written_whole(path) as part, pa.ipc.new_stream(str(part), _DROPPED) as writer:
        writer.write_table(pa.table(columns, _DROPPED))


def write_manifest(work: Work) -> None:
    """Complete work.set: tokenizer, names of the inputs, dropped documents, and the manifest.

    Raises: DataError if a shard is missing or a split has no row.
    """
    pieces = {}
    for shard in work.shards:
        if not work.piece(shard).exists():
            raise DataError(f"shard {shard.name} is not written; start again")
        pieces[shard] = read_json(work.piece(shard))
    entries = [piece["entry"] for piece in pieces.values() if piece["entry"]]
    dropped = sum((Counter(piece["dropped"]) for piece in pieces.values()), work.totals.dropped)
    for split in SPLITS:
        if not any(entry["split"] == split for entry in entries):
            raise work.too_few(split, work.totals.documents, dropped)
    shutil.copytree(work.tokenizer, work.set / "tokenizer", dirs_exist_ok=True)
    write_json(work.set / INPUTS, [redacted(name) for name in work.plan.files])
    _join_dropped(work)
    tokenizer = describe_tokenizer(work.set / "tokenizer")
    content = {"length": work.config.length, "shards": entries, "tokenizer": tokenizer}
    splits = {split: Counter[str]() for split in SPLITS}
    for shard, piece in pieces.items():
        if piece["entry"]:
            splits[shard.split].update(documents=piece["entry"]["documents"], **piece["counts"])
    statistics = _statistics(sum(splits.values(), Counter()), work.config.length)
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
            "%.1f %% of the tokens are [UNK], which no model can learn to fill: use a --tokenizer"
            " of this language, or a larger --vocab_size",
            100 * statistics["unknown_share"],
        )
    write_json(work.set / MANIFEST, manifest)
    fsync_dir(work.set)


def _join_dropped(work: Work) -> None:
    """Join the tables of dropped documents into one Parquet file, one at a time in memory."""
    path = work.set / DROPPED_FILE
    parts = [*map(work.run, work.plan.splits), *map(work.piece, work.shards)]
    with naming_full_disk(path), pq.ParquetWriter(path, _DROPPED) as writer:
        for part in parts:
            with (
                pa.memory_map(str(part.with_suffix(".arrow"))) as source,
                pa.ipc.open_stream(source) as reader,
            ):
                writer.write_table(reader.read_all())


def _statistics(total: Counter[str], length: int) -> dict[str, Any]:
    return {
        "documents": total["documents"],
        "tokens": total["tokens"],
        "rows": total["rows"],
        "unknown_share": round(total["unknown_tokens"] / total["tokens"], 6),
        "padding_share": round(total["padding_tokens"] / (total["rows"] * length), 6),
        "mean_document_tokens": round(total["tokens"] / total["documents"], 2),
    }
