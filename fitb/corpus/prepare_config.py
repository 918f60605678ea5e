"""What a preparation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fitb.base.errors import ConfigError
from fitb.corpus.chunk import MIN_LENGTH
from fitb.corpus.clean import CleanConfig
from fitb.corpus.sources import TextSource
from fitb.corpus.tokenizer import MIN_VOCAB_SIZE


@dataclass(frozen=True)
class PrepareConfig:
    """A shard set: which text, cleaned, deduplicated, tokenised and cut how.

    Args:
        out: the folder to make.
        source: docstrings of this Python and its packages (no download), text files in UTF-8, JSON
            lines, Parquet, or a Hugging Face dataset, streamed.
        files: paths, globs and URLs, compressed or not; of hf one folder or hub name.
        document: what makes a document of a text file; block is what stands between blank lines.
        column: that holds the text, of jsonl, parquet and hf.
        subset: configuration of a Hugging Face dataset.
        split: of a Hugging Face dataset.
        max_document_mb: a larger document is skipped and counted.
        max_mb: read no more than about this many megabytes of text; null reads all.
        clean: what is mended and what is dropped.
        near_duplicates: drop all but one of documents whose word 5-grams have at least this
            Jaccard similarity; null drops only equal texts.
        tokenizer: Hugging Face folder or hub name; null trains one on the train documents.
        vocab_size: of a trained tokenizer.
        lowercase: whether a trained tokenizer takes the case away.
        strip_accents: whether it takes accents and other marks away, which in Hindi and German are
            part of the spelling; null does with the case.
        add_tokens: file of words, one a line, that become tokens of the tokenizer.
        rows: packed fills rows with one document after another; document gives each its own rows.
        length: tokens in a row, special ones included.
        stride: tokens from one window of a document to the next; null is no overlap.
        validation_fraction: share of documents held out, chosen by their text.
        shard_mb: megabytes of text in a shard, and in memory for each worker.
        seed: of the order of documents.
        workers: processes on this machine; null takes one for each core.
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
                self.vocab_size >= MIN_VOCAB_SIZE,
                f"vocab_size={self.vocab_size}; at least {MIN_VOCAB_SIZE}",
            ),
            (self.length >= MIN_LENGTH, f"length={self.length}; at least {MIN_LENGTH}"),
            (
                stride is None or 0 < stride <= self.length - 2,
                f"stride={stride}; from 1 to {self.length - 2}, the tokens that a row of length"
                f" {self.length} holds",
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

    def text_source(self) -> TextSource:
        """Return where the text lies."""
        return TextSource(
            kind=self.source,
            files=tuple(self.files),
            document=self.document,
            column=self.column,
            subset=self.subset,
            split=self.split,
            max_document_mb=self.max_document_mb,
        )
