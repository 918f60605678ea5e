"""Small preparations, and what they leave behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fitb.base.fsio import read_json
from fitb.corpus import stages
from fitb.corpus.prepare import prepare

ROOT = Path(__file__).resolve().parents[3]


def put(path, texts):
    """Write texts as the blocks of a file, and return the files of a preparation."""
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return [str(path)]


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def but_for_names(folder):
    """What a set holds, without the names of its input files."""
    found = contents(folder)
    del found["manifest.json"], found["inputs.json"]
    manifest = read_json(folder / "manifest.json")
    for name in ("files", "tokenizer"):
        del manifest["settings"][name]
    return found, manifest


def interrupted_at(monkeypatch, config, place):
    """Run a preparation until a call of stages.`place`."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, place, interrupted)
        prepare(config)


def started(config, folder, patch):
    """Start `fitb prepare` in a process whose stages are patched first.

    Args:
        folder: for the patch.
        patch: lines in which `stages` is fitb.corpus.stages and `write` what writes a shard.
    """
    head = "import os, signal, time\nfrom fitb.corpus import stages\nwrite = stages._write_piece\n"
    (folder / "sitecustomize.py").write_text(head + patch)
    return subprocess.Popen(
        [sys.executable, "-m", "fitb", "prepare", *flags_of(config)],
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def flags_of(config):
    """The flags of a small preparation from text."""
    return [
        *("--out", config.out, "--source", "text", "--files", str(config.files).replace("'", '"')),
        *("--vocab_size", "300", "--length", "32", "--validation_fraction", "0.1"),
        *("--shard_mb", str(config.shard_mb), "--workers", str(config.workers)),
    ]
