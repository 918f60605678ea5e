"""Sizes, docstrings and words of the house style, as tests."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import sizes

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("fitb", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]
WORDS = (".py", ".md", ".yaml", ".yml", ".sh", ".cfg", ".toml", ".json", ".txt", ".cff", ".def")
FOLDERS = (
    *("fitb", "launch", "slurm", "ds_configs", "docs", "tests"),
    *(".ci", ".github", "container"),
)
# Written in parts, so that this file does not hold what it looks for.
PRIVATE = re.compile(
    "|".join((r"(?<![\w.])/wo" r"rk\b", r"(?<![\w.])/op" r"t\b", r"\.\./sha" r"red"))
)
ISSUE = re.compile(r"(?<![\w&#/`'\"])#\d+\b")


def texts():
    """Every file of words that belongs to the repository."""
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    for path in [*ROOT.iterdir(), *inside]:
        if path.is_file() and (path.suffix in WORDS or path.suffix == ""):
            yield path


def named(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_two_modules_say_the_same():
    firsts = Counter(
        (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0] for path in SOURCES
    )
    assert not [text for text, number in firsts.items() if number > 1]


def test_no_two_public_classes_have_one_name_and_no_module_a_name_that_tells_nothing():
    classes = Counter(
        node.name
        for path in SOURCES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, number in classes.items() if number > 1]
    assert not [named(path) for path in SOURCES if path.stem in ("run", "config", "page", "table")]


def test_no_module_is_longer_than_one_reads_and_no_function_than_a_screen():
    assert sizes.modules(*sizes.CODE)[-1][0] <= sizes.LONGEST_MODULE
    assert sizes.functions(*sizes.CODE)[-1][0] <= sizes.LONGEST_FUNCTION


def test_the_main_road_fits_one_screen():
    assert len((ROOT / "fitb/training/loop.py").read_text().splitlines()) <= 100


def test_launchers_are_short():
    for path in (ROOT / "launch").glob("*.py"):
        assert len(path.read_text().splitlines()) < 80, path


@pytest.mark.parametrize("pattern", [PRIVATE, ISSUE], ids=["path", "issue"])
def test_no_file_names_a_private_path_or_the_number_of_an_issue(pattern):
    assert not [named(path) for path in texts() if pattern.search(path.read_text())]


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_source_is_ascii(path):
    assert path.read_bytes().isascii()


def test_messages_of_errors_are_one_string():
    """raise Error(f"..", f"..") makes a tuple of a message."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func)
                if name.endswith(("Error", "Fault")):
                    assert len(node.exc.args) <= 1, f"{named(path)}:{node.lineno}"
