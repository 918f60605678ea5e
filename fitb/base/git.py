"""The git commit of the checkout that fitb runs from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fitb

ROOT = Path(fitb.__file__).parents[1]


def git(*words: str) -> str | None:
    """Return the output of a git command in the checkout; None if there is no checkout or git."""
    if not (ROOT / ".git").exists():  # an environment may lie in a repository of its user
        return None
    command = ["git", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def describe(dirty: str = "-dirty") -> str | None:
    """Return the short commit, with the suffix `dirty` if files differ from it."""
    return git("describe", "--always", f"--dirty={dirty}", "--exclude=*")
