"""A run whose student begins from its teacher."""

from __future__ import annotations

import signal
from pathlib import Path

import job
import pytest

SHAPE = '"num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4'
WIDE, NARROW = (f'{{{SHAPE}, "hidden_size": {width}}}' for width in (64, 32))
FROM_TEACHER = ["--model.init", "teacher", "--objective.relation", "1"]


def test_it_resumes_bitwise_and_tells_where_it_began(quick_flags, tmp_path: Path) -> None:
    flags = [*quick_flags, *FROM_TEACHER, "--model.student", NARROW]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert job.run(flags, whole) == 0
    assert job.run_and_signal(flags, resumed, signal.SIGUSR1, at_step=5, rank=1) == 85
    assert job.run(flags, resumed) == 0
    job.assert_same(whole, resumed)
    (began,) = job.events(resumed, "begin")  # not again after the resume
    assert began["layers"] == [] and "layers" in began["left"][0]
    assert "| begun from the teacher: 2 layers" in (resumed / "export" / "README.md").read_text()
    assert began["terms"]["distill/embedding"] > 1e-9


def test_mlm_alone_from_the_teachers_layers_asks_no_teacher(quick_flags, tmp_path: Path) -> None:
    """The control of the same start."""
    off = [f"--objective.{term}=0" for term in ("embedding", "hidden", "attention", "logits")]
    flags = [*quick_flags, "--model.init", "teacher", "--model.student", WIDE, *off]
    assert job.run([*flags, "--steps", "8"], tmp_path / "run", 1) == 0
    (began,) = job.events(tmp_path / "run", "begin")
    assert began["layers"] == [2, 4]
    assert not began["left"] and "distill/embedding" not in began["terms"]
    records = job.metrics(tmp_path / "run")
    assert not any(name.startswith("distill/") for record in records for name in record)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.teacher", "null"], "model.init=teacher"),
        (["--model.init_layers", "[1, 9]"], "model.init_layers=[1, 9]"),
    ],
)
def test_a_start_that_cannot_be_is_refused(quick_flags, tmp_path: Path, flags, said) -> None:
    words = [*quick_flags, "--model.init", "teacher", "--model.student", WIDE, *flags]
    refused = job.fitb("train", *words, "--run_dir", str(tmp_path / "run"))
    assert (refused.returncode, said in refused.stderr) == (93, True), refused.stderr
