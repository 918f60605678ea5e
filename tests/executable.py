"""Small scripts that stand for commands, and commands that a test runs to their end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def executable(path: Path, lines: str, shell: str = "/usr/bin/env bash") -> Path:
    """Write a script that can be started by its name."""
    path.write_text(f"#!{shell}\n{lines}\n")
    path.chmod(0o755)
    return path


def ran(*words: object, code: int = 0, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a command that must end with this code; what it prints is text."""
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **settings)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done
