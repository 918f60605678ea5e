"""Docstrings are found without importing anything, in one order, in input splits of many files."""

import gc
from itertools import islice

import pytest

from fitb.base.errors import DataError
from fitb.corpus.docstrings import is_english, python_files
from fitb.corpus.sources import TextSource, plan, read_split

PROSE = "Return the length of the thing that is given, in metres, as a float."


def module(docstring):
    return f'raise SystemExit("imported")\n\ndef f():\n    """{docstring}"""\n'


def read_all(source, **sizes):
    planned = plan(source, **sizes)
    return [
        (planned.files[found.file], found.place, found.text)
        for split in planned.splits
        for found in read_split(source, planned, split)
    ]


def test_docstrings_come_in_sorted_order_without_importing_and_skip_what_is_broken(tmp_path):
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
    source = TextSource("docstrings", (str(tmp_path),))
    for split_mb in (1e-6, 1e-3, 64):
        assert read_all(source, split_mb=split_mb) == expected
    assert len(plan(source, split_mb=1e-6).splits) == 6
    assert gc.isenabled()


def test_the_first_of_two_folders_that_hold_a_name_counts(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(module(f"{PROSE} Of {folder}."))
    (tmp_path / "two" / "other.py").write_text(module(f"{PROSE} Other."))
    found = read_all(TextSource("docstrings", (str(tmp_path / "one"), str(tmp_path / "two"))))
    assert [(name, text.split()[-1]) for name, _, text in found] == [
        ("same.py", "one."),
        ("other.py", "Other."),
    ]


def test_the_running_interpreter_has_docstrings():
    source = TextSource("docstrings")
    planned = plan(source, max_mb=0.3)
    found = list(islice(read_split(source, planned, planned.splits[0]), 50))
    assert len(found) == 50
    assert {len(python_files()), len(planned.files)} == {len(planned.file_bytes)}
    size = sum(planned.file_bytes[: planned.splits[-1].end])
    assert 0.3e6 <= 0.15 * size < 0.3e6 + 0.15 * 4e6


def test_max_mb_counts_a_share_of_the_code(tmp_path):
    for number in range(10):
        (tmp_path / f"m{number}.py").write_text(module(PROSE).ljust(1000, "\n"))
    source = TextSource("docstrings", (str(tmp_path),))
    assert len(read_all(source, max_mb=0.00044)) == 3
    assert len(read_all(source, max_mb=0.00044, split_mb=1e-6)) == 3
    assert len(read_all(source, max_mb=1)) == 10


def test_a_folder_that_is_missing_or_holds_no_code_is_an_error(tmp_path):
    with pytest.raises(DataError, match="gone: not a folder"):
        plan(TextSource("docstrings", (str(tmp_path / "gone"),)))
    (tmp_path / "__init__.py").touch()
    with pytest.raises(DataError, match="nothing to read"):
        plan(TextSource("docstrings", (str(tmp_path),)))


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
def test_text_that_is_not_english_prose_is_left_out(text):
    assert is_english(PROSE)
    assert not is_english(text)
