"""What git says of the checkout that this package runs from; None where it runs from none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fitb

ROOT = Path(fitb.__file__).parents[1]


def git(*words: str) -> str | None:
    """Return what a command of git prints about the checkout."""
    if not (ROOT / ".git").exists():  # an environment may lie in a repository of its user
        return None
    command = ["git", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def describe(dirty: str = "-dirty") -> str | None:
    """Return the short commit, with `dirty` behind it where files differ from it."""
    return git("describe", "--always", f"--dirty={dirty}", "--exclude=*")
