"""Checkpoints of a run as models: whole or refused, and read without the training code."""

import shutil
from pathlib import Path

import pytest
import torch

from fitb.base.errors import DataError
from fitb.base.fsio import read_json, sha256_json, write_json
from fitb.base.world import World
from fitb.config import Config, DataConfig, Geometry, ModelConfig, ObjectiveConfig
from fitb.config.yaml import to_yaml
from fitb.corpus.tokenizer import describe_tokenizer
from fitb.model.load import load_model
from fitb.model.saved import load_saved
from fitb.objective.objective import Objective
from fitb.rundir.checkpoints import checkpoint_of
from fitb.shards.tokenizer import tokenizer_fingerprint
from fitb.training import checkpoint

SMALL = Geometry(num_hidden_layers=2, hidden_size=24, intermediate_size=32, num_attention_heads=3)


def commit(run, objective, step):
    """Save as training does: parameters with their moments, the projections too."""

    def tensors():
        for name, parameter in objective.named_parameters():
            yield f"param/{name}", parameter.detach() + 0
            for moment in ("exp_avg", "exp_avg_sq"):
                yield f"{moment}/{name}", torch.full_like(parameter, 0.5)

    root = run / "checkpoints"
    fence = root / ".0001"
    fence.mkdir(parents=True, exist_ok=True)
    return checkpoint.save(
        root, dict(tensors()), {"step": step}, fence=fence, world=World(), keep_last=9
    )[0]


@pytest.fixture
def make_run(tmp_path, tokenizer, make_folder):
    """A run of a student, with checkpoints of steps 1 and 2; the student is that of step 2."""

    def make(student=SMALL, dropout=None):
        run = tmp_path / "run"
        loaded = load_model(student, tokenizer=tokenizer, length=20, dropout=dropout, seed=3)
        teacher = load_model(make_folder("teacher"), tokenizer=tokenizer).model
        objective = Objective(loaded.model, teacher, ObjectiveConfig())
        model = ModelConfig(student=student, dropout=dropout)
        commit(run, objective, 1)
        (run / "config.yaml").write_text(to_yaml(Config(str(run), model=model)))
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.add_(torch.randn_like(parameter))
        commit(run, objective, 2)
        return run, loaded.model

    return make


def same(first, second):
    names = first.state_dict().keys()
    assert names == second.state_dict().keys()
    return all(torch.equal(first.state_dict()[n], second.state_dict()[n]) for n in names)


def test_a_run_means_its_newest_checkpoint_and_a_checkpoint_itself(make_run, tmp_path):
    run, model = make_run()
    first, second = (run / "checkpoints" / f"step-000000{i}" for i in (1, 2))
    assert checkpoint_of(run) == checkpoint_of(second) == second
    assert checkpoint_of(first) == first
    assert not same(load_saved(first).model, model)
    assert checkpoint_of(tmp_path) is None and checkpoint_of("bert-base-uncased") is None
    with pytest.raises(DataError, match="neither a run with checkpoints nor one of them"):
        load_saved(tmp_path)


@pytest.mark.parametrize("kind", ["geometry", "folder"])
def test_a_checkpoint_is_the_model_that_was_trained(make_run, make_folder, kind, tokenizer):
    student = SMALL if kind == "geometry" else make_folder("start", layer_norm_eps=1e-5)
    run, model = make_run(student, dropout=0.25)
    before = torch.get_rng_state()
    loaded = load_saved(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(loaded.model, model)
    assert loaded.source == str(run / "checkpoints" / "step-0000002")
    assert loaded.missing == () and not loaded.model.training
    assert loaded.tokenizer_fingerprint is None
    for key in ("vocab_size", "num_attention_heads", "layer_norm_eps", "hidden_dropout_prob"):
        assert getattr(loaded.model.config, key) == getattr(model.config, key)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found, expected = (m.eval()(input_ids=ids).logits for m in (loaded.model, model))
    assert torch.equal(found, expected)
    assert same(load_model(str(run), tokenizer=tokenizer).model, model)
    changed = load_model(str(run), tokenizer=tokenizer, dropout=0.0).model
    assert changed.config.hidden_dropout_prob == changed.bert.embeddings.dropout.p == 0.0


def test_weights_of_a_folder_that_is_gone_take_the_sizes_of_the_export(
    make_run, make_folder, tokenizer, tokenizer_folder
):
    start = make_folder("start")
    run, model = make_run(start)
    shutil.rmtree(start)
    with pytest.raises(DataError, match="put one of them back"):
        load_saved(run)
    model.save_pretrained(run / "export")
    tokenizer.save_pretrained(run / "export")
    loaded = load_saved(run)
    assert same(loaded.model, model)
    assert loaded.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer_folder)


def set_of(tokenizer_folder, fingerprint):
    return {
        "length": 20,
        "fingerprint": fingerprint,
        "tokenizer": describe_tokenizer(tokenizer_folder),
    }


def name_shards(run, fingerprint, folder):
    """Let the newest checkpoint name a set, and the run's configuration a folder of shards."""
    path = run / "checkpoints" / "step-0000002" / "manifest.json"
    manifest = read_json(path) | {"fingerprint": fingerprint}
    del manifest["sha256"]
    write_json(path, manifest | {"sha256": sha256_json(manifest)})
    config = Config(str(run), model=ModelConfig(student=SMALL), data=DataConfig(shards=str(folder)))
    (run / "config.yaml").write_text(to_yaml(config))


def test_a_checkpoint_is_known_by_the_shards_that_it_was_trained_on(
    make_run, tokenizer, tokenizer_folder, failures, tmp_path
):
    """By the same set; by that set's tokenizer, for another; never by a set that took its place."""
    run, _ = make_run()
    same, other = (set_of(tokenizer_folder, name * 64) for name in "ab")

    def said(manifest):
        return failures(load_saved(run, tokenizer=tokenizer), manifest=manifest)

    (failure,) = said(same)  # its manifest names no set
    assert "it is unknown whether" in failure and "put them back" in failure
    shards = tmp_path / "shards"
    shards.mkdir()
    name_shards(run, "a" * 64, shards)
    assert said(same) == []
    assert "it is unknown whether" in said(other)[0]
    write_json(shards / "manifest.json", other)
    assert "it is unknown whether" in said(other)[0]
    write_json(shards / "manifest.json", same)
    assert said(other) == []
    another = same | {"tokenizer": same["tokenizer"] | {"fingerprint": "c" * 64}}
    write_json(shards / "manifest.json", another)
    assert "has the fingerprint cccccccccccc" in said(other)[0]
    write_json(shards / "manifest.json", {})
    (run / "export").mkdir()
    shutil.copy(tokenizer_folder / "tokenizer.json", run / "export")  # the other remedy
    assert said(other) == []


def test_a_weight_of_a_checkpoint_that_is_not_finite_is_named(make_run, tokenizer):
    run, model = make_run()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias[3] = float("nan")
    teacher = load_model(SMALL, tokenizer=tokenizer).model
    folder = commit(run, Objective(model, teacher, ObjectiveConfig()), 3)
    with pytest.raises(DataError, match=r"bert\.encoder\.layer\.1\.output\.dense\.bias not finite"):
        load_saved(folder)


def test_a_student_that_began_as_a_checkpoint_has_the_sizes_of_that_run(make_run, tmp_path):
    run, model = make_run()
    later = tmp_path / "later"
    shutil.copytree(run, later)
    student = ModelConfig(student=str(run / "checkpoints" / "step-0000001"))
    (later / "config.yaml").write_text(to_yaml(Config(str(later), model=student)))
    assert same(load_saved(later).model, model)


def other_bytes(path):
    path.write_bytes(path.read_bytes()[:-3] + b"\x07" + path.read_bytes()[-2:])


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("harm", "file", "said"),
    [
        (other_bytes, "checkpoints/step-0000002/*.safetensors", "is not what was written"),
        (Path.unlink, "checkpoints/step-0000002/*.safetensors", "is missing"),
        (lambda path: path.write_text("{"), "checkpoints/*2/manifest.json", "cannot be read"),
        (
            lambda path: write_json(path, read_json(path) | {"format": 3}),
            "checkpoints/*2/manifest.json",
            "has checkpoint format 3",
        ),
        (
            lambda path: edit(path, "num_hidden_layers: 2", "num_hidden_layers: 3"),
            "config.yaml",
            r"does not hold this student: bert\.encoder\.layer\.2.* and \d+ more",
        ),
        (Path.unlink, "config.yaml", r"config\.yaml is missing"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(make_run, harm, file, said):
    run, _ = make_run()
    harm(next(run.glob(file)))
    with pytest.raises(DataError, match=said):
        load_saved(run / "checkpoints" / "step-0000002")
