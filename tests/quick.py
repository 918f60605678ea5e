"""Print the unit tests of what has changed, for `make quick`.

    python tests/quick.py [REVISION]

Changed is what differs from REVISION (HEAD), or what the last commit changed where nothing does.
Its tests are those that import a changed module, and the rules of the house.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ("tests/unit/test_house.py", "tests/unit/test_layers.py")


def changed(revision: str) -> list[str]:
    """Return the files that differ from a revision, those that git does not know yet too."""
    asked = (["diff", "--name-only", revision], ["ls-files", "--others", "--exclude-standard"])
    files = [name for words in asked for name in git(*words)]
    return files or git("diff", "--name-only", "HEAD~1", "HEAD")


def git(*words: str) -> list[str]:
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a test imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def tests_of(files: list[str]) -> list[str]:
    modules = {".".join(Path(name).with_suffix("").parts) for name in files}
    found = set(HOUSE)
    for path in sorted((ROOT / "tests" / "unit").rglob("test_*.py")):
        name = str(path.relative_to(ROOT))
        if name in files or modules & set(imported(path)):
            found.add(name)
    return sorted(found)


if __name__ == "__main__":
    print(*tests_of(changed(*sys.argv[1:] or ["HEAD"])))
