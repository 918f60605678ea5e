"""How long modules and functions are: `make sizes`, which fails where a limit is passed.

The limits of whole folders go down, and up only with a feature that CHANGELOG.md names.
"""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE, TESTS = ("fitb", "launch"), ("tests",)
BENCHMARKS = "tests/benchmarks/"  # what only proves our own claims is not counted
LONGEST_MODULE, LONGEST_FUNCTION, MEDIAN_FUNCTION = 400, 60, 9
MOST_CODE, MOST_TESTS = 37_500, 31_000


Sizes = list[tuple[int, str]]  # lines, blank ones and comments included, and name; sorted


def counted(*folders: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of every module that counts."""
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if not name.startswith(BENCHMARKS):
                yield name, path.read_text()


def modules(*folders: str) -> Sizes:
    return sorted((len(text.splitlines()), name) for name, text in counted(*folders))


def functions(*folders: str) -> Sizes:
    """Functions and methods, from `def` to their last line."""
    return sorted(
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}:{node.name}")
        for name, text in counted(*folders)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )


def quantile(sizes: Sizes, share: float) -> int:
    """Return the length that this share of sorted sizes does not exceed."""
    return sizes[math.ceil(share * len(sizes)) - 1][0]


def main() -> int:
    """Print the table; return 1 where a limit is passed."""
    print(f"{'':18} {'number':>7} {'median':>7} {'90 %':>7} {'largest':>8}")
    total = {}
    for title, folders in (("", CODE), ("test ", TESTS)):
        for kind, sizes in (("modules", modules(*folders)), ("functions", functions(*folders))):
            figures = f"{len(sizes):7} {quantile(sizes, 0.5):7} {quantile(sizes, 0.9):7}"
            print(f"{title + kind:18} {figures} {sizes[-1][0]:8}  {sizes[-1][1]}")
        total[title] = sum(lines for lines, _ in modules(*folders))
    share = total["test "] / total[""]
    print(f"{total['']:,} lines of code, {total['test ']:,} of tests: {share:.2f} to 1")
    code = functions(*CODE)
    limits = (
        ("longest module", modules(*CODE)[-1][0], LONGEST_MODULE),
        ("longest function", code[-1][0], LONGEST_FUNCTION),
        ("median of functions", quantile(code, 0.5), MEDIAN_FUNCTION),
        ("lines of code", total[""], MOST_CODE),
        ("lines of tests", total["test "], MOST_TESTS),
    )
    passed = [f"{what} {found:,}, at most {most:,}" for what, found, most in limits if found > most]
    print(*passed, sep="\n", end="\n" if passed else "")
    return int(bool(passed))


if __name__ == "__main__":
    sys.exit(main())
