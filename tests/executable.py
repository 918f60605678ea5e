"""Small scripts that stand for commands."""

from __future__ import annotations

from pathlib import Path


def executable(path: Path, lines: str, shell: str = "/usr/bin/env bash") -> Path:
    """Write a script that can be started by its name."""
    path.write_text(f"#!{shell}\n{lines}\n")
    path.chmod(0o755)
    return path
