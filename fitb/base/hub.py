"""Files of a Hugging Face folder or hub model; downloads follow HF_HUB_OFFLINE."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

from fitb.base.errors import DataError, FitbError
from fitb.base.modes import denied

_CODE = "it is a pickle with more than tensors, which is code and is never run"


def find_file(source: str, name: str) -> Path | None:
    """Return the path of a file of a folder or hub model, None if it has none."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except OSError:
        return None
    return Path(found) if found else None


@contextlib.contextmanager
def reading(what: str, source: str, *files: str) -> Iterator[None]:
    """Turn any exception of a library that reads a user's files into a DataError.

    All exceptions are caught, because a damaged file can make a parser raise anything.

    Args:
        what: what is read, for the message.
        source: folder or hub name.
        files: alternative file names; the first is named if none exists.
    """
    try:
        yield
    except (FitbError, MemoryError):
        raise
    except Exception as error:
        there = (name for name in files if os.path.isfile(Path(source) / name))
        raise not_found(what, source, next(there, files[0]), error) from error


def not_found(what: str, source: str, file: str, error: BaseException) -> DataError:
    """Return a DataError that says why a file is missing or unreadable, and the remedy."""
    folder = Path(source)
    if why := denied(folder / file) or _denied_inside(folder):
        return DataError(f"{what} {source!r} cannot be read: {why}")
    if folder.is_dir():
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = _CODE
        present = (folder / file).exists()
        unread = f"cannot be read ({file}: {reason})"
        state = unread if present else f"not there: it holds no {file}"
        return DataError(
            f"{what} {source!r} {state}; expected a folder that save_pretrained wrote; write it"
            " again or use another"
        )
    return DataError(
        f"{what} {source!r} not found: tried a folder of that name, then the Hugging Face hub and"
        " its cache; give the path of a local folder, or download it where there is a network and"
        " set HF_HUB_OFFLINE=1 here"
    )


def _denied_inside(folder: Path) -> str:
    """Return why a file of a folder may not be read; an empty string if all may."""
    inside = sorted(folder.iterdir()) if folder.is_dir() and os.access(folder, os.R_OK) else []
    return next(filter(None, map(denied, inside)), "")
