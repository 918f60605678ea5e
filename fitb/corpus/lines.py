"""Text and JSONL files, cut between documents and read in bounded memory.

A line ends with a newline byte; a blank line holds ASCII whitespace only; a block is a maximal
sequence of lines that are not blank. A safe place is the end of a line, for blocks of a blank line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any

from fitb.base.errors import DataError, nearest
from fitb.corpus.files import HEAD_BYTES, InputFile, check_is_text, compression_of, opened
from fitb.corpus.input_splits import (
    TO_THE_END,
    Cut,
    Document,
    Dropped,
    InputSplit,
    TextSource,
    decoded,
)

_READ_BYTES = 1 << 20
_SEEK_BYTES = 1 << 16
_LINE_END = re.compile(rb"\n")
_BLANK_LINE = re.compile(rb"\n[ \t\r\v\f]*\n")
_EXPANSION = 4  # estimated bytes of English text in a compressed byte, for any compression


def cut(source: TextSource, found: InputFile, split_bytes: int, room: float) -> Iterator[Cut]:
    """Yield ranges of a text or JSONL file, one for each input split, in order.

    Args:
        source: the source text.
        found: the file.
        split_bytes: nominal size of a range; each boundary moves on to the next safe place.
        room: bytes of text to take; the last boundary moves on to the next safe place too.
    """
    blocks = source.kind == "text" and source.document == "block"
    begin, size = 0, found.num_bytes
    if not size:
        return
    if compression_of(found.name):
        yield _whole(found, blocks, room)
        return
    if size <= min(split_bytes, room):
        yield Cut(0, size, size)
        return
    with opened(found.name, _SEEK_BYTES) as file:
        while begin < size and room > 0:
            nominal = begin + max(1, int(min(split_bytes, room)))
            end = size
            if nominal < size:
                file.seek(nominal - 1)
                end = min(size, safe_place(file, nominal, blocks))
            yield Cut(begin, end, end - begin)
            room -= end - begin
            begin = end


def _whole(found: InputFile, blocks: bool, room: float) -> Cut:
    """Return a compressed file as one range; decompress it to find the end only if need be."""
    estimate = _EXPANSION * found.num_bytes
    if estimate <= room:
        return Cut(0, TO_THE_END, estimate)
    with opened(found.name) as file:
        nominal = max(1, int(room))
        passed = 0
        while passed < nominal - 1:
            piece = file.read(min(_READ_BYTES, nominal - 1 - passed))
            if not piece:
                return Cut(0, TO_THE_END, passed)
            passed += len(piece)
        end = safe_place(file, nominal, blocks)
        return Cut(0, end, end)


def safe_place(file: IO[bytes], nominal: int, blocks: bool) -> int:
    """Return the offset of the next safe place, or of the end of the file.

    Args:
        file: positioned one byte before `nominal`.
        nominal: offset from the begin of the file in bytes, at least 1.
        blocks: search for the end of a blank line, rather than of any line.
    """
    pattern = _BLANK_LINE if blocks else _LINE_END
    offset, before = nominal - 1, b""
    while piece := file.read(_SEEK_BYTES):
        window = before + piece
        if match := pattern.search(window):
            return offset - len(before) + match.end()
        offset += len(piece)
        # A line that is blank so far, however long, is represented by its newline.
        tail = window[window.rfind(b"\n") :] if b"\n" in window else b""
        before = b"\n" if tail.isspace() else b""
    return offset


def read(source: TextSource, name: str, split: InputSplit) -> Iterator[Document | Dropped]:
    """Yield the documents of an input split of a text or JSONL file.

    Args:
        source: the source text.
        name: path or URL of the file.
        split: range of bytes to read.
    Raises: DataError if the file is truncated or of another format, or if its first record lacks
        the column.
    """
    with opened(name) as file:
        found = lines(*_pieces(file, name, split), source.max_document_bytes)
        if source.kind == "jsonl":
            yield from _records(source, name, split, found)
            return
        if source.document == "block":
            found = blocks(found, source.max_document_bytes)
        for place, raw in found:
            if raw is None or not _is_blank(raw):
                yield decoded(split.file, place, raw and raw.rstrip(b"\r"))


def _pieces(file: IO[bytes], name: str, split: InputSplit) -> tuple[Iterator[bytes], int]:
    """Return the bytes of an input split without a byte order mark, and their offset."""
    left = None if split.end == TO_THE_END else split.end - split.begin
    if split.begin:
        file.seek(split.begin)
        return _limited(file, name, b"", left), split.begin
    head = b""
    while more := file.read((HEAD_BYTES if left is None else min(HEAD_BYTES, left)) - len(head)):
        head += more
    check_is_text(name, head)
    left = None if left is None else left - len(head)
    if head.startswith(codecs.BOM_UTF8):
        begin = len(codecs.BOM_UTF8)
        return _limited(file, name, head[begin:], left), begin
    return _limited(file, name, head, left), 0


def _limited(file: IO[bytes], name: str, head: bytes, left: int | None) -> Iterator[bytes]:
    if head:
        yield head
    while left is None or left > 0:
        piece = file.read(_READ_BYTES if left is None else min(_READ_BYTES, left))
        if not piece:
            if left is not None:
                raise DataError(
                    f"{name} ended {left} bytes early: it has changed since the preparation began;"
                    " start again"
                )
            return
        left = None if left is None else left - len(piece)
        yield piece


def lines(
    pieces: Iterable[bytes], begin: int, max_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yield (offset, line without its newline).

    Args:
        pieces: consecutive bytes of a file, cut anywhere.
        begin: offset of the first piece, which begins a line.
        max_bytes: longest line that is loaded; a longer one is None, or empty if it is blank.
    """
    pending: list[bytes] = []
    size, is_blank, offset = 0, True, begin
    for piece in pieces:
        *ended, last = piece.split(b"\n")
        for part in ended:
            size += len(part)
            line: bytes | None = b"".join([*pending, part]) if pending else part
            if size > max_bytes:
                line = b"" if is_blank and _is_blank(part) else None
            yield offset, line
            offset += size + 1
            pending, size, is_blank = [], 0, True
        size += len(last)
        is_blank = is_blank and _is_blank(last)
        pending = [*pending, last] if last and size <= max_bytes else []
    if size:
        yield offset, b"".join(pending) if size <= max_bytes else b"" if is_blank else None


def blocks(
    found: Iterable[tuple[int, bytes | None]], max_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yield (offset, block without its last newline); None for a block above max_bytes."""
    block = bytearray()
    begin, is_big = -1, False
    for place, line in found:
        if line is None or not _is_blank(line):
            begin = place if begin < 0 else begin
            is_big = is_big or line is None or len(block) + bool(block) + len(line) > max_bytes
            if is_big or line is None:
                block.clear()
            else:
                block += b"\n" + line if block else line
        elif begin >= 0:
            yield begin, None if is_big else bytes(block)
            block.clear()
            begin, is_big = -1, False
    if begin >= 0:
        yield begin, None if is_big else bytes(block)


def _is_blank(line: bytes) -> bool:
    return not line or line.isspace()


def _records(
    source: TextSource, name: str, split: InputSplit, found: Iterable[tuple[int, bytes | None]]
) -> Iterator[Document | Dropped]:
    checked = split.begin > 0
    for place, raw in found:
        if raw is not None and _is_blank(raw):
            continue
        line = decoded(split.file, place, raw)
        if isinstance(line, Dropped):
            yield line
            continue
        record = _parsed(line.text)
        if not isinstance(record, dict):
            if not checked and (what := _other_json(line.text, record)):
                raise DataError(f"{name} is JSON, but {what}")
            yield Dropped(split.file, place, "invalid_json")
            continue
        if not checked and source.column not in record:
            raise no_column(name, source.column, list(record), "its first record")
        checked = True
        text = record.get(source.column)
        if isinstance(text, str):
            yield Document(split.file, place, text)
        else:
            yield Dropped(split.file, place, "no_text")


def _other_json(first: str, value: Any) -> str | None:
    """Return what is wrong with a file whose first line is not an object but other JSON."""
    start = first.strip("\ufeff \t\r")
    if start == "{":
        return "its objects span several lines; `jq -c .` puts each on one"
    if start in ("[", "[{") or (
        isinstance(value, list) and any(isinstance(each, dict) for each in value)
    ):
        return "an array; `jq -c '.[]'` puts its objects on lines, and --source hf reads arrays"
    return None


def _parsed(text: str) -> Any:
    """Return the JSON value of a line, None if it has none."""
    try:
        return json.loads(text.removeprefix("\ufeff"))  # concatenated files keep their BOMs
    except (ValueError, RecursionError):  # a hostile line may be a thousand brackets deep
        return None


def no_column(name: str, column: str, known: list[str], where: str) -> DataError:
    """Return the error for a column that does not exist."""
    return DataError(
        f"{name} has no column {column!r}{nearest(column, known)}; {where} has"
        f" {', '.join(map(repr, known)) or 'none'}: name one of them with --column"
    )
