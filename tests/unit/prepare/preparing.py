"""Small preparations, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fitb.fsio import read_json
from fitb.prepare.settings import PrepareConfig

MakeConfig = Callable[..., PrepareConfig]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def but_for_names(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What a set holds, without the names of its input files."""
    found = contents(folder)
    del found["manifest.json"], found["inputs.json"]
    manifest = read_json(folder / "manifest.json")
    for name in ("files", "tokenizer"):
        del manifest["settings"][name]
    return found, manifest


def flags_of(config: PrepareConfig) -> list[str]:
    """The flags of a small preparation from text."""
    return [
        *("--out", config.out, "--source", "text", "--files", str(config.files).replace("'", '"')),
        *("--vocab_size", "300", "--length", "32", "--validation_fraction", "0.1"),
        *("--shard_mb", str(config.shard_mb), "--workers", str(config.workers)),
    ]
