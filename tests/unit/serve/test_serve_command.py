"""`fitb serve` before it serves: what is missing is said in one line."""

import sys

from fitb import cli


def test_without_its_extra_it_says_how_to_install_it(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("fitb.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["serve", "model"]) == 2
    said = capsys.readouterr().err
    assert "uvicorn" in said and "pip install 'fitb[serve]'" in said


def test_an_unknown_flag_names_the_nearest(capsys):
    assert cli.main(["serve", "model", "--max_batch_text", "1"]) == 2
    assert "max_batch_texts" in capsys.readouterr().err
