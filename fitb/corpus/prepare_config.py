"""Configuration of `fitb prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fitb.base.errors import ConfigError
from fitb.corpus.chunk import MIN_LENGTH
from fitb.corpus.clean import CleanConfig
from fitb.corpus.tokenizer import MIN_VOCAB_SIZE


@dataclass(frozen=True)
class PrepareConfig:
    """A shard set: its source text, cleaning, deduplication, tokenizer, rows and splits.

    Args:
        out: folder to create.
        source: docstrings of this Python and its packages (no download), text files in UTF-8, JSON
            lines, Parquet, or a Hugging Face dataset, streamed.
        files: paths, globs and URLs, compressed or not; for hf one folder or hub name.
        document: unit of a text file that is one document; block is the text between blank lines.
        column: name of the column or key that holds the text, for jsonl, parquet and hf.
        subset: configuration name of a Hugging Face dataset.
        split: split of a Hugging Face dataset.
        max_document_mb: largest document, in megabytes; larger ones are skipped and counted.
        max_mb: megabytes of text to read, approximately; null reads all.
        clean: cleaning steps, and rules that drop documents.
        near_duplicates: Jaccard similarity of word 5-grams from which documents count as
            duplicates, of which one is kept; null drops only equal texts.
        tokenizer: Hugging Face folder or hub name; null trains one on the train split.
        vocab_size: vocabulary size of a trained tokenizer.
        lowercase: whether a trained tokenizer lowercases.
        strip_accents: whether a trained tokenizer removes accents and other marks, which are part
            of the spelling in German and Hindi; null removes them if it lowercases.
        add_tokens: file of words, one per line, to add to the tokenizer as tokens.
        rows: packed concatenates documents and fills rows; document gives each document its own
            rows.
        length: tokens in a row, special tokens included.
        stride: tokens from one window of a document to the next; null means no overlap.
        validation_fraction: share of documents in the validation split, chosen by a hash of their
            text.
        shard_mb: megabytes of text in a shard, and in the memory of each worker.
        seed: seed of the order of documents.
        workers: number of processes on this machine; null means one per core.
    """

    out: str
    source: Literal["docstrings", "text", "jsonl", "parquet", "hf"] = "docstrings"
    files: list[str] = field(default_factory=list)
    document: Literal["block", "line"] = "block"
    column: str = "text"
    subset: str | None = None
    split: str = "train"
    max_document_mb: float = 16.0
    max_mb: float | None = None
    clean: CleanConfig = field(default_factory=CleanConfig)
    near_duplicates: float | None = None
    tokenizer: str | None = None
    vocab_size: int = 30522
    lowercase: bool = True
    strip_accents: bool | None = None
    add_tokens: str | None = None
    rows: Literal["packed", "document"] = "packed"
    length: int = 128
    stride: int | None = None
    validation_fraction: float = 0.05
    shard_mb: float = 16.0
    seed: int = 0
    workers: int | None = None

    def __post_init__(self) -> None:
        share, near, stride = self.validation_fraction, self.near_duplicates, self.stride
        checks = [
            (
                bool(self.files) == (self.source != "docstrings"),
                f"source {self.source} and files {self.files}: docstrings take no files, every"
                " other source needs --files",
            ),
            (
                self.source != "hf" or len(self.files) == 1,
                f"source hf and files {self.files}: name one dataset, a hub name or a folder",
            ),
            (
                self.vocab_size >= MIN_VOCAB_SIZE,
                f"vocab_size={self.vocab_size}; at least {MIN_VOCAB_SIZE}",
            ),
            (self.length >= MIN_LENGTH, f"length={self.length}; at least {MIN_LENGTH}"),
            (
                stride is None or 0 < stride <= self.length - 2,
                f"stride={stride}; from 1 to {self.length - 2}, the ordinary tokens in a row of"
                f" length {self.length}",
            ),
            (
                stride is None or self.rows == "document",
                f"stride={stride} goes with --rows document; packed rows do not overlap",
            ),
            (0 < share < 1, f"validation_fraction={share}; between 0 and 1"),
            (near is None or 0.5 <= near <= 1, f"near_duplicates={near}; from 0.5 to 1, or null"),
            (self.shard_mb > 0, f"shard_mb={self.shard_mb}; above 0"),
            (self.max_document_mb > 0, f"max_document_mb={self.max_document_mb}; above 0"),
            (self.max_mb is None or self.max_mb > 0, f"max_mb={self.max_mb}; above 0"),
            (self.workers is None or self.workers >= 1, f"workers={self.workers}; at least 1"),
        ]
        for holds, message in checks:
            if not holds:
                raise ConfigError(message)
