"""English docstrings of Python files, parsed and never imported: a corpus that needs no download.

Files have one order: root folders as given, paths in them sorted.
"""

from __future__ import annotations

import ast
import gc
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from fitb.base.errors import DataError
from fitb.corpus.files import InputFile
from fitb.corpus.input_splits import Cut, Document, InputSplit, ReadPlan

_MIN_CHARS = 40
_MIN_LETTER_SHARE = 0.65
_MIN_STOP_WORDS = 2
_STOP_WORDS = {
    "a", "an", "and", "are", "as", "at", "be", "by", "can", "for", "from", "has", "if", "in",
    "into", "is", "it", "its", "may", "not", "of", "on", "or", "that", "the", "then", "this",
    "to", "used", "was", "when", "which", "will", "with", "without", "you",
}  # fmt: skip
# Installed packages are a root folder of their own; tests are repetitive or broken on purpose.
_SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
_MAX_SOURCE_BYTES = 4_000_000  # larger modules are generated tables
_TEXT_SHARE = 0.15  # measured: 0.16 over 15,000 files, 0.12 in torch, 0.17 in transformers
_SPLIT_SHARE = 8
_HOLDERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_files(folders: Sequence[str] = ()) -> list[InputFile]:
    """Return the Python files of root folders, named relative to their root.

    Args:
        folders: root folders; none means the standard library, then the installed packages. Of
            files with the same name the first counts, as for import.
    Raises: DataError if a folder does not exist.
    """
    found: dict[str, InputFile] = {}
    for root in _roots(folders):
        for path in _walk(root):
            name = path.relative_to(root).as_posix()
            if name not in found:
                stat = path.stat()
                found[name] = InputFile(name, stat.st_size, str(stat.st_mtime_ns))
    return list(found.values())


def cut(files: Sequence[InputFile], split_bytes: int, room: float) -> Iterator[Cut]:
    """Yield ranges of consecutive Python files, one for each input split.

    Args:
        files: the files, from `python_files`.
        split_bytes: nominal size of a split; a range ends with the file that reaches an eighth of
            it, because parsing code costs about ten times what reading text does.
        room: bytes of text to take, estimated from the size of the code; the file that reaches it
            is the last.
    """
    begin, size = 0, 0
    for end, file in enumerate(files, 1):
        size += file.num_bytes
        text_bytes = size * _TEXT_SHARE
        is_last = end == len(files) or text_bytes >= room
        if size and (is_last or size * _SPLIT_SHARE >= split_bytes):
            yield Cut(begin, end, text_bytes)
            begin, size, room = end, 0, room - text_bytes
        if is_last:
            return


def read(folders: Sequence[str], plan: ReadPlan, split: InputSplit) -> Iterator[Document]:
    """Yield the English docstrings of an input split; a file that cannot be parsed has none."""
    roots = _roots(folders)
    for number in range(split.begin, split.end):
        paths = (root / plan.files[number] for root in roots)
        path = next((path for path in paths if path.is_file()), None)
        for place, text in enumerate(docstrings(path) if path else ()):
            if is_english(text):
                yield Document(number, place, text)


def is_english(text: str) -> bool:
    """Whether a text is English prose, by three rules.

    It has at least 40 characters; at least 65 % of its non-space characters are ASCII letters; at
    least two different words are English stop words.
    """
    solid = re.sub(r"\s+", "", text)
    if len(text) < _MIN_CHARS or not solid:
        return False
    letters = len(re.sub(r"[^A-Za-z]+", "", solid))
    words = set(re.findall(r"[a-z]+", text.lower()))
    return letters >= _MIN_LETTER_SHARE * len(solid) and len(words & _STOP_WORDS) >= _MIN_STOP_WORDS


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a file in the order of its syntax tree; none if parsing fails."""
    try:
        if path.stat().st_size > _MAX_SOURCE_BYTES:
            return
        tree = _parsed(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, _HOLDERS) and (text := ast.get_docstring(node, clean=False)):
            yield inspect.cleandoc(text)


def _parsed(code: bytes) -> ast.Module:
    """Parse without garbage collection, which would free nothing and take a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(code)
    finally:
        if was_enabled:
            gc.enable()


def _roots(folders: Sequence[str]) -> list[Path]:
    if not folders:
        paths = sysconfig.get_paths()
        folders = [paths[key] for key in ("stdlib", "purelib", "platlib")]
    roots = [Path(folder) for folder in dict.fromkeys(folders)]
    for root in roots:
        if not root.is_dir():
            raise DataError(f"docstrings of {root}: not a folder; name one that holds .py files")
    return roots


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".py"):
                yield Path(folder, name)
