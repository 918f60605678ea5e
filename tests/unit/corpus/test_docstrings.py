"""Docstrings are found without importing anything, in one order, in units of many files."""

from __future__ import annotations

import ast
import gc
import inspect
import sysconfig
import warnings
from itertools import islice
from pathlib import Path

import pytest

from fitb.corpus.docstrings import docstrings, is_english, python_files
from fitb.corpus.sources import Source, plan, read_unit
from fitb.errors import DataError

PROSE = "Return the length of the thing that is given, in metres, as a float."
NESTED = '''
"""Module."""
if True:
    def late(): "one-quoted docstring of a function in an if"
else:
    class Other:
        """Class in an else."""
        for _ in range(2):
            async def loop(self):
                """Async in a loop."""
            x = lambda: [y for y in (lambda: 1,)]
try:
    def tried(): """Tried."""
except ValueError:
    def handled(): """Handled."""
else:
    def otherwise(): """Otherwise."""
finally:
    def finished(): """Finished."""
match 1:
    case 1:
        with open("f") as f:
            class Case: """In a case."""
        while False:
            def loop(): """Loop."""
        else:
            def no_loop(): """No loop."""
    case _:
        def default():
            ("""Joined """
             """docstring.""")
@decorated(lambda: 0)
def top(a=lambda: 1):
    """Top."""
    def inner():
        """Inner."""
        class Deep:
            """Deep."""
def none():
    b"""Bytes are no docstring."""
def formatted():
    f"""Nor is this {1}."""
'''


def module(docstring: str) -> str:
    return f'raise SystemExit("imported")\n\ndef f():\n    """{docstring}"""\n'


def naive(path: Path) -> list[str]:
    """Docstrings by the walk of the standard library."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, kinds)]
    return [inspect.cleandoc(text) for text in found if text]


def read_all(source: Source, **sizes: float) -> list[tuple[str, int, str]]:
    planned = plan(source, **sizes)
    return [
        (planned.files[found.file], found.place, found.text)
        for unit in planned.units
        for found in read_unit(source, planned, unit)
    ]


def test_the_walk_finds_what_ast_walk_finds_in_the_same_order(tmp_path: Path) -> None:
    path = tmp_path / "nested.py"
    path.write_text(NESTED)
    assert len(naive(path)) == 15
    assert list(docstrings(path)) == naive(path)
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for name in ("argparse.py", "asyncio/tasks.py", "typing.py", "unittest/mock.py", "ast.py"):
        assert list(docstrings(stdlib / name)) == naive(stdlib / name)


def test_docstrings_come_in_sorted_order_without_importing_and_skip_what_is_broken(
    tmp_path: Path,
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "b" / "late.py").write_text(module(f"{PROSE} Late."))
    (tmp_path / "early.py").write_text(f'"""Short."""\n{module(f"{PROSE}  Indented ")}')
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "escape.py").write_text(module(rf"{PROSE} \d"))
    (tmp_path / "null.py").write_bytes(b"x = '\0'\n")
    (tmp_path / "deep.py").write_text("(" * 5000 + ")" * 5000)
    (tmp_path / "tests" / "t.py").write_text(module(PROSE))
    expected = [
        ("early.py", 1, f"{PROSE}  Indented "),
        ("escape.py", 0, rf"{PROSE} \d"),
        ("b/late.py", 0, f"{PROSE} Late."),
    ]
    source = Source("docstrings", (str(tmp_path),))
    for unit_mb in (1e-6, 1e-3, 64):
        assert read_all(source, unit_mb=unit_mb) == expected
    assert len(plan(source, unit_mb=1e-6).units) == 6
    assert gc.isenabled()


def test_the_first_of_two_folders_that_hold_a_name_counts(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(module(f"{PROSE} Of {folder}."))
    (tmp_path / "two" / "other.py").write_text(module(f"{PROSE} Other."))
    found = read_all(Source("docstrings", (str(tmp_path / "one"), str(tmp_path / "two"))))
    assert [(name, text.split()[-1]) for name, _, text in found] == [
        ("same.py", "one."),
        ("other.py", "Other."),
    ]


def test_the_running_interpreter_has_docstrings() -> None:
    source = Source("docstrings")
    planned = plan(source, max_mb=0.3)
    found = list(islice(read_unit(source, planned, planned.units[0]), 50))
    assert len(found) == 50
    assert {len(python_files()), len(planned.files)} == {len(planned.file_bytes)}
    size = sum(planned.file_bytes[: planned.units[-1].end])
    assert 0.3e6 <= 0.15 * size < 0.3e6 + 0.15 * 4e6


def test_max_mb_counts_a_share_of_the_code(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"m{number}.py").write_text(module(PROSE).ljust(1000, "\n"))
    source = Source("docstrings", (str(tmp_path),))
    assert len(read_all(source, max_mb=0.00044)) == 3
    assert len(read_all(source, max_mb=0.00044, unit_mb=1e-6)) == 3
    assert len(read_all(source, max_mb=1)) == 10


def test_a_folder_that_is_missing_or_holds_no_code_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: it is no folder"):
        plan(Source("docstrings", (str(tmp_path / "gone"),)))
    (tmp_path / "__init__.py").touch()
    with pytest.raises(DataError, match="nothing to read"):
        plan(Source("docstrings", (str(tmp_path),)))


@pytest.mark.parametrize(
    "text",
    [
        "Too short for the rule.",
        "0x3f 17 22 99 == [1, 2, 3] // the a 8723 ** 9 | 0b1101 ++ -- 12 34 56 78 90",
        "Diese Funktion berechnet Entfernungen zwischen zwei Punkten ohne Rundungsfehler",
        "\u8fd9\u4e2a\u51fd\u6570\u8fd4\u56de\u7684\u662f\u4e00\u4e2a\u5f88\u957f\u7684\u5217\u8868"
        * 5,
        " " * 50,
    ],
)
def test_text_that_is_not_english_prose_is_left_out(text: str) -> None:
    assert is_english(PROSE)
    assert not is_english(text)
