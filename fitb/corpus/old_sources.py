"""Documents from where text lies: docstrings that every Python installation has, or text files.

Sources are lazy and have one order: roots as given, paths sorted. Nothing that is read is imported
or executed.
"""

from __future__ import annotations

import ast
import glob
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fitb.errors import DataError

_MIN_CHARS = 40
_MIN_LETTER_SHARE = 0.65
_MIN_STOP_WORDS = 2
_STOP_WORDS = {
    "a", "an", "and", "are", "as", "at", "be", "by", "can", "for", "from", "has", "if", "in",
    "into", "is", "it", "its", "may", "not", "of", "on", "or", "that", "the", "then", "this",
    "to", "used", "was", "when", "which", "will", "with", "without", "you",
}  # fmt: skip
# Installed packages get their own walk; tests repeat themselves and hold broken files on purpose.
_SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
_MAX_SOURCE_BYTES = 4_000_000  # larger modules are generated tables


@dataclass(frozen=True)
class Document:
    """A text as found.

    Args:
        source: where it was found; never written to the shards.
        text: not yet normalised.
    """

    source: str
    text: str


def read_documents(
    source: Literal["docstrings", "text"],
    files: Sequence[str] = (),
    *,
    document: Literal["block", "line"] = "block",
    max_mb: float | None = None,
) -> Iterator[Document]:
    """Yield the documents of a source.

    Args:
        source: docstrings of the running interpreter and its packages, or text files.
        files: paths and globs of the text source.
        document: what makes a document of a text file: a block between blank lines, or a line.
        max_mb: stop before the text exceeds this many megabytes (10**6 bytes of UTF-8).
    Raises: DataError where a file is missing or unreadable, or nothing was found.
    """
    found = docstring_documents() if source == "docstrings" else text_documents(files, document)
    count = 0
    for item in found if max_mb is None else _first_bytes(found, int(max_mb * 1e6)):
        count += 1
        yield item
    if not count:
        where = ", ".join(files) if source == "text" else "the running interpreter's packages"
        limit = "" if max_mb is None else f" within max_mb={max_mb}"
        raise DataError(f"source {source!r} found no document in {where}{limit}; name other files")


def _first_bytes(documents: Iterable[Document], limit: int) -> Iterator[Document]:
    total = 0
    for item in documents:
        total += len(item.text.encode(errors="replace"))
        if total > limit:
            return
        yield item


def docstring_documents(roots: Sequence[Path] | None = None) -> Iterator[Document]:
    """Yield English docstrings of modules, classes and functions, found by parsing only.

    Args:
        roots: folders to walk; None takes the standard library, then the installed packages.
    """
    for root in _interpreter_roots() if roots is None else roots:
        for path in _python_files(root):
            name = path.relative_to(root).as_posix()
            for text in _docstrings(path):
                if is_english(text):
                    yield Document(name, text)


def is_english(text: str) -> bool:
    """Tell English prose by rule: long enough, mostly ASCII letters, with common English words.

    At least 40 characters; at least 65 % of the characters that are not space are ASCII letters;
    at least two different words are among the commonest of English.
    """
    solid = re.sub(r"\s+", "", text)
    if len(text) < _MIN_CHARS or not solid:
        return False
    letters = len(re.sub(r"[^A-Za-z]+", "", solid))
    words = set(re.findall(r"[a-z]+", text.lower()))
    return letters >= _MIN_LETTER_SHARE * len(solid) and len(words & _STOP_WORDS) >= _MIN_STOP_WORDS


def _interpreter_roots() -> list[Path]:
    paths = sysconfig.get_paths()
    roots = [Path(paths[key]) for key in ("stdlib", "purelib", "platlib")]
    return [root for number, root in enumerate(roots) if root not in roots[:number]]


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".py"):
                yield Path(folder, name)


def _docstrings(path: Path) -> Iterator[str]:
    """Yield a file's docstrings in the order of its syntax tree; nothing for a broken file."""
    try:
        if path.stat().st_size > _MAX_SOURCE_BYTES:
            return
        code = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(code)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield inspect.cleandoc(text)


def text_documents(
    files: Sequence[str], document: Literal["block", "line"] = "block"
) -> Iterator[Document]:
    """Yield the documents of text files in UTF-8.

    Args:
        files: paths and globs; a glob's matches are read in sorted order.
        document: block (text between blank lines) or line.
    Raises: DataError that names a missing file, an empty glob, or bytes that are not UTF-8.
    """
    for path in [path for pattern in files for path in _expand(pattern)]:
        try:
            with open(path, encoding="utf-8-sig") as lines:
                for text in _blocks(lines) if document == "block" else lines:
                    if text.strip():
                        yield Document(str(path), text)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 ({error.reason}); convert it, for example with iconv"
            ) from error
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    found = [path for path in found if path.is_file()]
    if not found:
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"text file {pattern} {what}; name a file, or a glob such as 'texts/*.txt'")
    return found


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield "".join(block)
            block = []
    if block:
        yield "".join(block)
