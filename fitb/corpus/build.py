"""From text to a shard set: read, normalise, deduplicate, order, split, tokenise, pack, write.

The same text and settings give the same bytes on every machine. The folder appears whole, under
its final name, or not at all.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

import fitb
from fitb.corpus.chunk import MIN_LENGTH, Columns, pack, token_streams
from fitb.corpus.shards import (
    FORMAT_VERSION,
    MANIFEST,
    in_shards,
    read_manifest,
    shard_name,
    write_shard,
)
from fitb.corpus.old_sources import read_documents
from fitb.corpus.spool import SPLITS, Spool, spool
from fitb.corpus.tokenizer import (
    MIN_VOCAB_SIZE,
    SpecialIds,
    describe_tokenizer,
    open_tokenizer,
    take_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from fitb.errors import ConfigError, DataError
from fitb.fsio import folder_written_whole, naming_full_disk, sha256_file, sha256_json, write_json

_NUM_SAMPLES = 5
_SAMPLE_CHARS = 160

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareConfig:
    """A shard set: which text, cut and tokenised how.

    Args:
        out: the folder to make.
        source: docstrings of this Python and its packages (no download), or text files.
        files: paths and globs of the text source, in UTF-8.
        document: what makes a document of a text file; block is what stands between blank lines.
        tokenizer: Hugging Face folder or hub name; null trains one on the train documents.
        vocab_size: of a trained tokenizer.
        length: tokens in a row, special ones included.
        validation_fraction: share of documents held out, chosen by their text.
        shard_rows: rows in a file.
        max_mb: read no more text than this, in megabytes; null reads all.
        seed: of the order of documents.
    """

    out: str
    source: Literal["docstrings", "text"] = "docstrings"
    files: list[str] = field(default_factory=list)
    document: Literal["block", "line"] = "block"
    tokenizer: str | None = None
    vocab_size: int = 30522
    length: int = 128
    validation_fraction: float = 0.05
    shard_rows: int = 65536
    max_mb: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        share = self.validation_fraction
        checks = [
            (bool(self.files) == (self.source == "text"), "source text needs files; no other does"),
            (
                self.vocab_size >= MIN_VOCAB_SIZE,
                f"vocab_size={self.vocab_size}; at least {MIN_VOCAB_SIZE}",
            ),
            (self.length >= MIN_LENGTH, f"length={self.length}; at least {MIN_LENGTH}"),
            (0 < share < 1, f"validation_fraction={share}; between 0 and 1"),
            (self.shard_rows >= 1, f"shard_rows={self.shard_rows}; at least 1"),
            (self.max_mb is None or self.max_mb > 0, f"max_mb={self.max_mb}; above 0"),
        ]
        for holds, message in checks:
            if not holds:
                raise ConfigError(message)


def prepare(config: PrepareConfig) -> Path:
    """Make a shard set; do nothing where the folder already holds the same one.

    Returns: path of the manifest.
    Raises: DataError where there is no text, too little of it for two splits, a tokenizer that
        does not fit, or another shard set in the folder; SystemFault where the disk is full.
    """
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        naming_full_disk(out),
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.spool-") as scratch_name,
    ):
        scratch = Path(scratch_name)
        given = None
        if config.tokenizer is not None:
            given = scratch / "tokenizer"
            take_tokenizer(config.tokenizer, given)
        settings = _settings(config, given)
        _check_place(out, settings)
        texts = _spool(config, scratch / "documents")
        if (out / MANIFEST).exists():
            _check_same_text(out, texts)
            logger.info("out=%s already holds this shard set; nothing to do", out)
            return out / MANIFEST
        with folder_written_whole(out) as folder:
            _write_tokenizer(config, texts, given, folder / "tokenizer")
            manifest = _write_splits(config, texts, folder)
            write_json(folder / MANIFEST, {**manifest, "settings": settings})
    logger.info("out=%s fingerprint=%s", out, manifest["fingerprint"])
    return out / MANIFEST


def _settings(config: PrepareConfig, given: Path | None) -> dict[str, Any]:
    """Return the settings as the manifest keeps them, a given tokenizer with its fingerprint."""
    settings = asdict(config)
    del settings["out"]
    settings["tokenizer_fingerprint"] = tokenizer_fingerprint(given) if given else None
    return settings


def _check_place(out: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds anything but a shard set of the same settings."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"out={out} is a file; name a new folder")
    if not (out / MANIFEST).exists():
        if any(out.iterdir()):
            raise DataError(f"out={out} holds files that are no shard set; name a new folder")
        return
    before = read_manifest(out)["settings"]
    # Names of places do not count: texts and tokenizers are compared by their fingerprints.
    keys = sorted(settings.keys() - {"files", "tokenizer"})
    changed = [
        f"{key}: {before.get(key)} -> {settings[key]}"
        for key in keys
        if before.get(key) != settings[key]
    ]
    if changed:
        raise DataError(
            f"out={out} holds a shard set of other settings ({'; '.join(changed)}); name a new"
            " folder, or remove this one"
        )


def _check_same_text(out: Path, texts: Spool) -> None:
    found = read_manifest(out).get("corpus_fingerprint")
    if found != texts.fingerprint:
        raise DataError(
            f"out={out} holds a shard set of other text (corpus_fingerprint {found}, now"
            f" {texts.fingerprint}); name a new folder, or remove this one"
        )


def _spool(config: PrepareConfig, folder: Path) -> Spool:
    folder.mkdir()
    texts = spool(
        read_documents(config.source, config.files, document=config.document, max_mb=config.max_mb),
        folder,
        seed=config.seed,
        validation_fraction=config.validation_fraction,
    )
    logger.info(
        "documents_train=%d documents_validation=%d duplicates=%d empty=%d",
        *(texts.documents[split] for split in SPLITS),
        texts.duplicates,
        texts.empty,
    )
    for split in SPLITS:
        if not texts.documents[split]:
            raise DataError(_too_few(split, sum(texts.documents.values()), config))
    return texts


def _too_few(split: str, num_documents: int, config: PrepareConfig) -> str:
    remedy = "raise" if split == "validation" else "lower"
    finer = ", or document=line" if config.source == "text" and config.document == "block" else ""
    return (
        f"no document fell into the {split} split: {num_documents} different documents at"
        f" validation_fraction={config.validation_fraction}; give more text, {remedy} the"
        f" fraction{finer}"
    )


def _write_tokenizer(config: PrepareConfig, texts: Spool, given: Path | None, folder: Path) -> None:
    if given:
        given.rename(folder)
    else:
        train_tokenizer(texts.texts("train"), config.vocab_size, folder)
    logger.info("tokenizer_fingerprint=%s", tokenizer_fingerprint(folder))


def _write_splits(config: PrepareConfig, texts: Spool, folder: Path) -> dict[str, Any]:
    """Write all shards and return the manifest without its settings."""
    tokenizer = describe_tokenizer(folder / "tokenizer")
    counts = {split: _Counts() for split in SPLITS}
    shards = []
    for split in SPLITS:
        rows = _rows(texts.texts(split), folder / "tokenizer", config.length)
        for number, shard in enumerate(in_shards(rows, config.shard_rows)):
            path = folder / shard_name(split, number)
            size = write_shard(
                path,
                shard,
                vocab_size=tokenizer["vocab_size"],
                with_offsets=split == "validation",
            )
            counts[split].add(shard, SpecialIds(**tokenizer["special_ids"]))
            shards.append(
                {
                    "file": path.name,
                    "split": split,
                    "rows": len(shard),
                    "bytes": size,
                    "sha256": sha256_file(path),
                }
            )
            logger.info("shard=%s rows=%d tokens=%d", path.name, len(shard), counts[split].tokens)
        if not counts[split].rows:
            raise DataError(_too_few(split, counts[split].documents, config))
    content = {"length": config.length, "shards": shards, "tokenizer": tokenizer["fingerprint"]}
    return {
        "format": "fitb-shards",
        "format_version": FORMAT_VERSION,
        "fitb_version": fitb.__version__,
        "fingerprint": sha256_json({"format_version": FORMAT_VERSION, **content}),
        "corpus_fingerprint": texts.fingerprint,
        "length": config.length,
        "splits": {split: asdict(counts[split]) for split in SPLITS},
        "shards": shards,
        "tokenizer": tokenizer,
        "statistics": _statistics(counts, texts, config.length),
        "sample": list(islice(_sample(texts.texts("train")), _NUM_SAMPLES)),
    }


def _rows(texts: Iterable[str], tokenizer_folder: Path, length: int) -> Iterator[Columns]:
    tokenizer, special = open_tokenizer(tokenizer_folder)
    return pack(token_streams(texts, tokenizer, special.sep), length, special)


@dataclass
class _Counts:
    """Totals of a split; tokens are ordinary ones, [UNK] among them."""

    documents: int = 0
    rows: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    padding_tokens: int = 0

    def add(self, shard: Columns, special: SpecialIds) -> None:
        no_text = np.isin(shard.input_ids, (special.pad, special.cls, special.sep))
        self.documents = int(shard.doc_end[-1])
        self.rows += len(shard)
        self.tokens += int(no_text.size - no_text.sum())
        self.unknown_tokens += int((shard.input_ids == special.unk).sum())
        self.padding_tokens += int((shard.input_ids == special.pad).sum())


def _statistics(counts: dict[str, _Counts], texts: Spool, length: int) -> dict[str, Any]:
    documents = sum(count.documents for count in counts.values())
    rows = sum(count.rows for count in counts.values())
    tokens = sum(count.tokens for count in counts.values())
    unknown = sum(count.unknown_tokens for count in counts.values())
    padding = sum(count.padding_tokens for count in counts.values())
    return {
        "documents": documents,
        "duplicates": texts.duplicates,
        "dropped": texts.empty + sum(texts.documents.values()) - documents,
        "tokens": tokens,
        "rows": rows,
        "unknown_share": round(unknown / tokens, 6),
        "padding_share": round(padding / (rows * length), 6),
        "mean_document_tokens": round(tokens / documents, 2),
    }


def _sample(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield text if len(text) <= _SAMPLE_CHARS else text[: _SAMPLE_CHARS - 3] + "..."
