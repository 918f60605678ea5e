"""What the documentation holds: its blocks, commands and links, for tests."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    + [ROOT / folder / "README.md" for folder in ("ds_configs", "container")]
    + list((ROOT / "docs").glob("*.md"))
)
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
_REASON = re.compile(r"<!-- not run: (.+?) -->")
_FENCE = re.compile(r"^(```+)\s*(\w*)")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Args:
        path: of the page.
        line: where it begins, from 1.
        kind: word after the fence; "indented" without one, "head" in a batch script.
        text: its lines.
        reason: why it is not run, where a comment before it says so.
    """

    path: Path
    line: int
    kind: str
    text: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(path: Path) -> Iterator[Block]:
    """Yield fenced and indented blocks of a page, or the command lines in the head of a script."""
    lines = path.read_text().splitlines()
    if path.suffix == ".sh":
        for number, line in enumerate(lines, 1):
            if (found := re.match(r"#\s+((?:sbatch|for|export|python) .*)", line)) or (
                found := re.match(r"# .*:   (sbatch .*)", line)
            ):
                yield Block(path, number, "head", found[1])
        return
    place, reason = 0, ""
    while place < len(lines):
        line = lines[place]
        fence = _FENCE.match(line)
        begin = place + 1
        if fence:
            end = next(i for i in range(place + 1, len(lines)) if lines[i].startswith(fence[1]))
            yield Block(path, begin, fence[2], "\n".join(lines[place + 1 : end]), reason)
            place = end
        elif line.startswith("    ") and (place == 0 or not lines[place - 1].strip()):
            end = place
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(line[4:] for line in lines[place:end])
            yield Block(path, begin, "indented", text.rstrip(), reason)
            place = end - 1
        if line.strip():
            found = _REASON.match(line)
            reason = found[1] if found else ""
        place += 1


def prose(path: Path) -> str:
    """A page without its blocks and inline code."""
    text = path.read_text()
    for block in blocks(path):
        text = text.replace(block.text, "")
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    made: set[str] = set()
    text = re.sub(r"^(```+).*?^\1", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        kept = (letter for letter in heading.lower() if letter.isalnum() or letter in " -_")
        made.add("".join(kept).replace(" ", "-"))
    return made


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block: comments, loops, pipes and assignments apart."""
    joined = re.sub(r"\\\n\s*", " ", text)
    joined = re.sub(r"\[([^\]\n]*)\](?= |$|;)", "...", joined)  # [flags] of a usage line
    for line in joined.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set(";&|"):
                words.append(word)
                continue
            while words and (words[0] == "do" or re.match(r"^[A-Z_]+=", words[0])):
                words.pop(0)
            redirect = next((i for i, w in enumerate(words) if set(w) <= set("<>")), len(words))
            if words[:redirect]:
                yield words[:redirect]
            words = []
