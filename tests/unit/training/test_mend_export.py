"""A run's export is looked at when an attempt begins, and made again where it is not whole."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM

from fitb.base import fsio
from fitb.base.errors import DataError
from fitb.base.world import World
from fitb.config import EvalConfig
from fitb.model import exported
from fitb.training import checkpoint, milestones
from fitb.training.milestones import catch_up
from fitb.training.setup import Progress, open_run

SIZES = BertConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
)


def student(step):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step)
        return BertForMaskedLM(SIZES)


class Mending:
    """A run with an export of step 8, the best one, that resumes at step 16."""

    def __init__(self, config, tokenizer):
        self.config, (self.run, _) = config, open_run(config, World())
        self.parts = SimpleNamespace(
            engine=SimpleNamespace(
                world=World(), objective=SimpleNamespace(student=SimpleNamespace(model=student(0)))
            ),
            progress=Progress(16, 4.5, 8),
            tokenizer=tokenizer,
        )
        for step in (8, 16):
            names = student(step).named_parameters()
            tensors = {f"param/student.model.{name}": p.detach() for name, p in names}
            where = {"fence": self.run.fence, "world": World(), "keep_last": 9}
            checkpoint.save(self.run.checkpoints, tensors, {"step": step}, **where)
            fsio.append_line(self.run.metrics, {"train/step": step, "val/loss_mlm": 4 + step / 16})
        self.export(8)

    def export(self, step):
        weights = dict(student(step).named_parameters())
        milestones._write_export(weights, step, self.parts, self.run, self.config, {})

    def mend(self):
        """Begin; return step and reason of what was made again."""
        catch_up(self.parts, self.run, self.config, None, None)
        events = fsio.read_lines(self.run.path / "events.jsonl", "event")
        return [(e["step"], e["reason"]) for e in events if e["event"] == "exported"]

    def same(self, step):
        """Whether the export is whole, and of these weights."""
        found = load_file(self.run.export / "model.safetensors")
        wanted = dict(student(step).named_parameters())
        equal = all(torch.equal(found[name], wanted[name]) for name in wanted)
        whole = exported.damage(self.run.export) is None
        return equal and whole and exported.step_of(self.run.export) == step


@pytest.fixture
def mending(run_config, tokenizer, monkeypatch):
    monkeypatch.setattr(milestones, "_model_card", lambda *args: "# a card\n")
    return Mending(run_config(eval=EvalConfig(every_steps=8)), tokenizer)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def emptied(export):
    """As a power cut left it."""
    for path in export.iterdir():
        path.write_bytes(b"")


def gone(export):
    export.rename(export.with_name("elsewhere"))


def flipped(export):
    data = bytearray((export / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (export / "model.safetensors").write_bytes(data)


DAMAGE = {
    "gone": gone,
    "empty files": emptied,
    "weights of zeros": lambda export: zeros(export / "model.safetensors"),
    "one bit": flipped,
    "no tokenizer": lambda export: (export / "tokenizer.json").unlink(),
    "card of zeros": lambda export: zeros(export / "README.md"),
    "record of zeros": lambda export: zeros(export / "export.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_an_export_that_is_not_whole_is_made_again_from_the_best_checkpoint(mending, caplog, name):
    """A run believed in an export of zeros, for its checkpoint knew the best loss."""
    DAMAGE[name](mending.run.export)
    ((step, reason),) = mending.mend()
    assert step == 8 and "export" in reason and mending.same(8)
    assert [m for m in caplog.messages if "from the weights of step 8" in m]
    assert len(mending.mend()) == 1  # once


def filled(value, export):
    model = student(8)
    with torch.no_grad():
        next(model.parameters()).fill_(value)
    model.save_pretrained(export)


@pytest.mark.parametrize(
    "damage",
    [
        *(damage for name, damage in DAMAGE.items() if name not in ("one bit", "record of zeros")),
        partial(filled, 0.0),
        partial(filled, float("nan")),
    ],
)
def test_an_export_of_an_older_fitb_is_judged_by_what_can_be_seen(mending, damage):
    export = mending.run.export
    (export / "export.json").unlink()
    assert mending.mend() == []
    assert not (export / "export.json").exists()
    damage(export)
    assert [step for step, _ in mending.mend()] == [8] and mending.same(8)


def test_without_the_best_checkpoint_the_resumed_weights_are_taken_and_it_is_said(mending, caplog):
    (mending.run.checkpoints / "step-0000008").rename(mending.run.path / "elsewhere")
    emptied(mending.run.export)
    ((step, reason),) = mending.mend()
    assert step == 16 and "no checkpoint holds the best step 8" in reason and mending.same(16)
    assert any("no checkpoint holds" in message for message in caplog.messages)
    assert len(mending.mend()) == 1


def test_an_older_export_gives_way_to_the_best_one_and_a_later_one_does_not(mending):
    """A later one is of an attempt that was killed before it saved; its step comes again."""
    mending.export(4)
    assert [step for step, _ in mending.mend()] == [8]
    mending.export(24)
    assert len(mending.mend()) == 1 and mending.same(24)


def test_a_card_that_people_have_edited_is_no_damage(mending):
    (mending.run.export / "README.md").write_text("# ours\n")
    (mending.run.export / "notes.txt").write_text("mine\n")
    assert mending.mend() == []


@pytest.mark.parametrize(
    ("progress", "steps", "made"),
    [(Progress(0), 100, []), (Progress(16), 100, []), (Progress(16), 16, [16])],
)
def test_without_validation_an_export_is_due_when_the_run_is_finished(
    mending, progress, steps, made
):
    gone(mending.run.export)
    mending.parts.progress = progress
    changes = {"steps": steps, "eval": EvalConfig(every_steps=0)}
    mending.config = dataclasses.replace(mending.config, **changes)
    assert [step for step, _ in mending.mend()] == made


def test_a_checkpoint_that_is_damaged_too_is_no_source(mending):
    for path in mending.run.checkpoints.glob("step-*/*.safetensors"):
        zeros(path)
    gone(mending.run.export)
    with pytest.raises(DataError, match="not what was written"):
        mending.mend()


@pytest.mark.parametrize("recorded", [True, False])
def test_what_somebody_put_beside_an_export_is_there_after_the_next_one(mending, recorded):
    export = mending.run.export
    if not recorded:  # as an older fitb left it
        (export / exported.RECORD).unlink()
    (export / "notes.txt").write_text("mine")
    (export / "onnx").mkdir()
    (export / "onnx" / "model.onnx").write_text("mine, too")
    (export / "link").symlink_to("notes.txt")
    mending.export(16)
    assert (export / "notes.txt").read_text() == "mine"
    assert (export / "onnx" / "model.onnx").read_text() == "mine, too"
    assert (export / "link").is_symlink()
    assert mending.same(16)
    assert "notes.txt" not in fsio.read_json(export / exported.RECORD)["files"]
