"""What a source of text is, how it is cut into splits for tasks, and what a split yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fitb.base.errors import ConfigError, nearest

Kind = Literal["docstrings", "text", "jsonl", "parquet", "hf"]

KINDS = ("docstrings", "text", "jsonl", "parquet", "hf")
TO_THE_END = -1


@dataclass(frozen=True)
class TextSource:
    """Where text lies and what makes a document of it.

    Args:
        kind: docstrings of Python files, UTF-8 text, JSON lines, Parquet, or a dataset of Hugging
            Face's.
        files: paths, globs or fsspec URLs; for hf one name or folder; for docstrings folders to
            walk, none for the running interpreter's own.
        document: what makes a document of a text file: a block between blank lines, or a line.
        column: key or column that holds the text, for jsonl, parquet and hf.
        subset: configuration of a Hugging Face dataset.
        split: split of a Hugging Face dataset.
        max_document_mb: longer documents (10**6 bytes of UTF-8; of JSON the whole line) are
            skipped, and never held where they are text or JSON lines.
    Raises: ConfigError for a value that is not one of those.
    """

    kind: Kind
    files: tuple[str, ...] = ()
    document: Literal["block", "line"] = "block"
    column: str = "text"
    subset: str | None = None
    split: str = "train"
    max_document_mb: float = 16

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"source {self.kind!r} is unknown{nearest(str(self.kind), KINDS)};"
                f" take one of {', '.join(KINDS)}"
            )
        if self.document not in ("block", "line"):
            raise ConfigError(f"document is {self.document!r}; take block or line")
        if not self.max_document_mb > 0:
            raise ConfigError(
                f"max_document_mb is {self.max_document_mb}, expected more than 0; take 16"
            )
        if self.kind == "hf" and len(self.files) != 1:
            raise ConfigError(
                f"source 'hf' got {len(self.files)} names, expected one: a hub name or a folder;"
                " prepare several into one corpus one after the other"
            )
        if self.kind in ("text", "jsonl", "parquet") and not self.files:
            raise ConfigError(f"source {self.kind!r} got no files; name paths, globs or URLs")

    @property
    def max_document_bytes(self) -> int:
        return int(self.max_document_mb * 1e6)


@dataclass(frozen=True)
class InputSplit:
    """What one task reads, alone and without knowing of the others.

    Args:
        number: of the input split in its plan.
        file: number of the file in the plan; of the first one for docstrings.
        begin: text and jsonl: byte of the (decompressed) file; parquet: row group; hf: row of the
            shard, which is its file; docstrings: number of the first file.
        end: the same, excluded; -1 is the end of the file.
    """

    number: int
    file: int
    begin: int
    end: int


@dataclass(frozen=True)
class ReadPlan:
    """Every split of a source; a function of the input and the sizes asked for, never of workers.

    Args:
        files: names for people: path or URL; relative to its root for docstrings; dataset and
            shard for hf. With a bound on the input they may hold more than the splits read.
        file_bytes: size as stored; an estimate of the text for hf, 0 where it tells none.
        splits: in the order of the input.
        stamps: of the files; another one tells of another content of the same size.
    """

    files: tuple[str, ...]
    file_bytes: tuple[int, ...]
    splits: tuple[InputSplit, ...]
    stamps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A text as found.

    Args:
        file: number of its file in the plan.
        place: text and jsonl: its first byte in the (decompressed) file; parquet and hf: row of the
            file or shard; docstrings: how many docstrings of the file lie before it.
        text: not yet cleaned, without its last line end.
    """

    file: int
    place: int
    text: str


@dataclass(frozen=True)
class Dropped:
    """A document that could not be read.

    Args:
        file, place: as in Document.
        rule: too_big, invalid_utf8, invalid_json or no_text.
    """

    file: int
    place: int
    rule: str


@dataclass(frozen=True)
class Cut:
    """An input split before it has a number.

    Args:
        begin, end: as in InputSplit.
        text_bytes: what it counts for max_mb, an estimate where only reading would tell.
    """

    begin: int
    end: int
    text_bytes: float


def decoded(file: int, place: int, raw: bytes | None) -> Document | Dropped:
    """Return the document of some bytes; None stands for bytes that were too many to hold."""
    if raw is None:
        return Dropped(file, place, "too_big")
    try:
        return Document(file, place, raw.decode())
    except UnicodeDecodeError:
        return Dropped(file, place, "invalid_utf8")
