"""Integrity of an export: export.json records its step and the size and sha256 of its files.

A power cut or a bad disk can leave files of zeros. README.md, which people may edit, is not
recorded. Nothing here needs torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fitb.base import fsio

RECORD = "export.json"
_FORMAT = 1
_CARD = "README.md"
_OBJECTS = ("config.json", "tokenizer.json", "tokenizer_config.json")
_WEIGHTS = "model.safetensors"
_UNRECORDED = (*_OBJECTS, _WEIGHTS, "vocab.txt", "special_tokens_map.json", "added_tokens.json")


def seal(folder: Path, step: int) -> None:
    """Write export.json, the last file of an export.

    Args:
        folder: folder of the export, complete but for export.json.
        step: training step of the weights.
    """
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": fsio.sha256_file(path)}
        for path in sorted(folder.iterdir())
        if path.name != _CARD
    }
    record = {"format": _FORMAT, "step": step, "files": files}
    fsio.write_json(folder / RECORD, {**record, "sha256": fsio.sha256_json(record)})


def keep_others(old: Path, new: Path) -> None:
    """Copy files that a user added to an old export into the new one.

    Args:
        old: folder of the old export.
        new: folder of the new export, sealed; the copied files are not recorded.
    """
    try:
        ours = {*_record(old)["files"], RECORD, _CARD}
    except (OSError, ValueError):
        ours = {*_UNRECORDED, RECORD, _CARD}
    for path in sorted(old.iterdir()) if old.is_dir() else ():
        if path.name in ours or (new / path.name).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def step_of(folder: Path) -> int | None:
    """Return the training step of an export; None if its record is missing or damaged."""
    try:
        return int(_record(folder)["step"])
    except (OSError, ValueError):
        return None


def damage(folder: Path) -> str | None:
    """Return what is damaged in an export, or None.

    For an old export without a record: files that are missing or not JSON, weights that do not fit
    their header, are not finite or are all zero.

    Raises: OSError if the filesystem fails to read it.
    """
    try:
        _check(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        return f"{error.filename} is missing"
    except ValueError as error:
        return str(error)
    return None


def _record(folder: Path) -> dict[str, Any]:
    """Read export.json; ValueError if it is damaged."""
    record: dict[str, Any] = _object(folder / RECORD, "step", "files", "sha256")
    rest = {key: value for key, value in record.items() if key != "sha256"}
    if record["sha256"] != fsio.sha256_json(rest):
        raise ValueError(f"{folder / RECORD} is not what was written: its sha256 differs")
    return record


def _object(path: Path, *keys: str) -> dict[str, Any]:
    try:
        found = fsio.parse_json(path.read_bytes(), *keys)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it is not an object")
    return found


def _check(folder: Path) -> None:
    """Raise ValueError or FileNotFoundError for the first damaged file."""
    try:
        files = _record(folder)["files"]
    except FileNotFoundError:
        _check_without_record(folder)
    else:
        for name, expected in files.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                raise ValueError(f"{folder / name} has {size} bytes, expected {expected['bytes']}")
            if fsio.sha256_file(folder / name) != expected["sha256"]:
                raise ValueError(f"{folder / name} is not what was written: its sha256 differs")
    card = folder / _CARD
    text = card.read_bytes() if card.is_file() else b"removed by its owner"
    if not text.strip() or b"\0" in text:
        raise ValueError(f"{card} is not text")


def _check_without_record(folder: Path) -> None:
    import numpy as np
    from safetensors import SafetensorError, safe_open

    for name in _OBJECTS:
        _object(folder / name)
    weights = folder / _WEIGHTS
    weights.stat()
    try:
        with safe_open(weights, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                values = tensors.get_tensor(name)
                if not np.isfinite(values).all():
                    raise ValueError(f"{weights} holds numbers in {name} that are not finite")
                if values.ndim > 1 and not values.any():
                    raise ValueError(f"{weights} holds nothing but zeros in {name}")
    except SafetensorError as error:
        raise ValueError(f"{weights} cannot be read ({error})") from error
