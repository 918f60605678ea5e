"""Documents are found without importing anything, in one order, and what is missing is named."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from fitb.corpus.old_sources import Document, docstring_documents, is_english, read_documents
from fitb.errors import DataError

PROSE = "Return the length of the thing that is given, in metres, as a float."


def module(docstring: str) -> str:
    return f'raise SystemExit("imported")\n\ndef f():\n    """{docstring}"""\n'


def test_docstrings_come_in_sorted_order_without_importing_and_skip_what_is_broken(
    tmp_path: Path,
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "b" / "late.py").write_text(module(f"{PROSE} Late."))
    (tmp_path / "early.py").write_text(module(f"{PROSE}\n\n    Indented \\d.\n    "))
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "null.py").write_bytes(b"x = '\0'\n")
    (tmp_path / "tests" / "t.py").write_text(module(PROSE))
    (tmp_path / "short.py").write_text(module("The end of it."))
    assert list(docstring_documents([tmp_path])) == [
        Document("early.py", f"{PROSE}\n\nIndented \\d."),
        Document("b/late.py", f"{PROSE} Late."),
    ]


def test_the_running_interpreter_has_docstrings() -> None:
    found = list(islice(read_documents("docstrings"), 50))
    assert len(found) == 50
    assert all(len(document.text) >= 40 for document in found)


@pytest.mark.parametrize(
    "text",
    [
        "Too short for the rule.",
        "0x3f 17 22 99 == [1, 2, 3] // the a 8723 ** 9 | 0b1101 ++ -- 12 34 56 78 90",
        "Diese Funktion berechnet Entfernungen zwischen zwei Punkten ohne Rundungsfehler",
        "\u8fd9\u4e2a\u51fd\u6570\u8fd4\u56de\u7684\u662f\u4e00\u4e2a\u5f88\u957f\u7684\u5217\u8868"
        * 5,
    ],
)
def test_text_that_is_not_english_prose_is_left_out(text: str) -> None:
    assert is_english(PROSE)
    assert not is_english(text)


def test_blocks_end_at_blank_lines_and_lines_stand_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n \t\r\n\r\nthree")
    blocks = read_documents("text", [str(path)])
    assert [document.text for document in blocks] == ["one\ntwo\n", "three"]
    lines = read_documents("text", [str(path)], document="line")
    assert [document.text.strip() for document in lines] == ["one", "two", "three"]


def test_globs_are_read_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(name)
    found = read_documents("text", [str(tmp_path / "*.txt")])
    assert [document.text for document in found] == ["a.txt", "b.txt"]


def test_max_mb_bounds_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join("x" * 100 for _ in range(100)))
    found = list(read_documents("text", [str(path)], max_mb=0.001))
    assert 0 < sum(len(document.text) for document in found) <= 1000


def test_a_missing_folder_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt does not exist"):
        list(read_documents("text", [str(tmp_path / "gone.txt")]))
    with pytest.raises(DataError, match="is a folder"):
        list(read_documents("text", [str(tmp_path)]))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8"):
        list(read_documents("text", [str(tmp_path / "latin.txt")]))


def test_a_source_without_documents_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"no document in .*empty\.txt"):
        list(read_documents("text", [str(tmp_path / "empty.txt")]))
