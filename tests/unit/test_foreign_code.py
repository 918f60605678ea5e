"""Code that lies in somebody's model folder is never run, and never offered to be run."""

import ast
import io
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

from fitb import cli

ROOT = Path(__file__).resolve().parents[2]
ASKED = ("from_pretrained", "from_config")


def calls():
    for path in sorted((ROOT / "fitb").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, node


def test_every_call_that_could_run_code_says_that_it_must_not():
    found = [
        (path, node)
        for path, node in calls()
        if isinstance(node.func, ast.Attribute) and node.func.attr in ASKED
    ]
    assert len(found) >= 2
    for path, node in found:
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert words.get("trust_remote_code") == "False", f"{path}:{node.lineno}"


def test_nothing_names_what_would_run_code():
    """A dataset's script has not been run by any `datasets` since its version 4."""
    never = {"pickle.load", "pickle.loads", "torch.load", "torch.hub.load", "evaluate.load"}
    found = [f"{path}:{node.lineno}" for path, node in calls() if ast.unparse(node.func) in never]
    assert not found


EVIL = """
import pathlib
pathlib.Path({marker!r}).write_text("run")
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
class Config(BertConfig):
    model_type = "evil"
class Model(BertForMaskedLM):
    pass
class Tokenizer(BertTokenizer):
    pass
"""


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def maps(kind):
    """Everything that may name code, for a configuration and for a tokenizer."""
    model = {"AutoConfig": "evil.Config", "AutoModelForMaskedLM": "evil.Model"}
    return {"model_type": kind, "auto_map": model}, {"AutoTokenizer": ["evil.Tokenizer", None]}


@pytest.fixture(params=["unknown type", "known type", "tokenizer", "pickle", "old pickle"])
def evil(request, make_folder, tokenizer_folder, tmp_path):
    """A folder with code in one of the places from which libraries run it, and its mark."""
    marker = tmp_path / "marker"
    folder = Path(make_folder("evil"))
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    if request.param.endswith("type"):
        named, _ = maps("evil" if request.param == "unknown type" else "bert")
        (folder / "config.json").write_text(json.dumps(config | named))
    elif request.param == "tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text((tokenizer_folder / "vocab.txt").read_text())
        _, named = maps("bert")
        settings = {"tokenizer_class": "Tokenizer", "auto_map": named}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    else:
        (folder / "model.safetensors").unlink()
        if request.param == "pickle":
            torch.save({"bert.x": Evil(str(marker))}, folder / "pytorch_model.bin")
        else:
            (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(str(marker)), 2))
    return folder, marker


def test_code_in_a_folder_is_refused_though_a_person_says_yes(evil, monkeypatch, capfd):
    folder, marker = evil
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    code = cli.main(["fill", "--model", str(folder), "a [MASK] b"])
    said = "".join(capfd.readouterr())
    assert not marker.exists(), said
    assert code in (2, 3), said
    assert "Traceback" not in said
    for offer in ("trust_remote_code", "weights_only", "custom code", "[y/N]"):
        assert offer not in said
