"""Types of the source text: a source, its input splits, and the documents that a split yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

TO_THE_END = -1


@dataclass(frozen=True)
class TextSource:
    """Where the source text is, and what one document of it is.

    Args:
        kind: docstrings of Python files, UTF-8 text, JSON lines, Parquet, or a Hugging Face
            dataset.
        files: paths, globs or fsspec URLs; for hf one hub name or folder; for docstrings the
            folders to walk, or none for those of the running interpreter.
        document: for text: a block between blank lines, or a line.
        column: name of the key or column that holds the text, for jsonl, parquet and hf.
        subset: configuration name of a Hugging Face dataset.
        split: split of a Hugging Face dataset.
        max_document_mb: largest document, in 10**6 bytes of UTF-8 (for JSON of the line); larger
            ones are skipped, and never loaded from text or JSON lines.
    """

    kind: Literal["docstrings", "text", "jsonl", "parquet", "hf"]
    files: tuple[str, ...] = ()
    document: Literal["block", "line"] = "block"
    column: str = "text"
    subset: str | None = None
    split: str = "train"
    max_document_mb: float = 16

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TextSource:
        """Return the source in the settings of a preparation, as PrepareConfig names them."""
        names = [field.name for field in fields(cls)[2:]]
        others = {name: settings[name] for name in names}
        return cls(settings["source"], tuple(settings["files"]), **others)

    @property
    def max_document_bytes(self) -> int:
        return int(self.max_document_mb * 1e6)


@dataclass(frozen=True)
class InputSplit:
    """A range of the source text that one task reads.

    Args:
        number: number of the input split in its plan.
        file: number of the file in the plan; for docstrings of the first file.
        begin: text and jsonl: byte of the (decompressed) file; parquet: row group; hf: row of the
            dataset's shard, which counts as a file; docstrings: number of the first file.
        end: end of the range in the same unit, excluded; -1 means the end of the file.
    """

    number: int
    file: int
    begin: int
    end: int


@dataclass(frozen=True)
class ReadPlan:
    """The input splits of a source; they do not depend on the number of workers.

    Args:
        files: name of each file: path or URL; for docstrings relative to its root; for hf dataset
            and shard. With max_mb, some may be outside all splits.
        file_bytes: stored size of each file in bytes; for hf an estimate of the text, or 0.
        splits: the input splits, in the order of the input.
        stamps: a value for each file that changes when its content does.
    """

    files: tuple[str, ...]
    file_bytes: tuple[int, ...]
    splits: tuple[InputSplit, ...]
    stamps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A document before cleaning.

    Args:
        file: number of its file in the plan.
        place: text and jsonl: its first byte in the (decompressed) file; parquet and hf: its row in
            the file or shard; docstrings: number of docstrings before it in the file.
        text: its text, without the last line end.
    """

    file: int
    place: int
    text: str


@dataclass(frozen=True)
class Dropped:
    """A document that could not be read.

    Args:
        file: as in Document.
        place: as in Document.
        rule: too_big, invalid_utf8, invalid_json or no_text.
    """

    file: int
    place: int
    rule: str


@dataclass(frozen=True)
class Cut:
    """An input split before it has a number.

    Args:
        begin: as in InputSplit.
        end: as in InputSplit.
        text_bytes: bytes of text that count towards max_mb, estimated unless they are known.
    """

    begin: int
    end: int
    text_bytes: float


def decoded(file: int, place: int, raw: bytes | None) -> Document | Dropped:
    """Decode a document; None stands for one larger than max_document_mb."""
    if raw is None:
        return Dropped(file, place, "too_big")
    try:
        return Document(file, place, raw.decode())
    except UnicodeDecodeError:
        return Dropped(file, place, "invalid_utf8")
