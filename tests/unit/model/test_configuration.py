"""A config.json that asks for what fitb does not compute is refused with the key."""

import json
import re
from pathlib import Path

import pytest
import torch
from model_folders import edit_config, edit_weights
from transformers import BertForMaskedLM, BertForPreTraining, BertModel

from fitb.base.errors import ConfigError, ContractError, DataError
from fitb.config import Config, ModelConfig
from fitb.infer.scorer import load_scorer
from fitb.model.load import load_model

EXTRA = "bert.encoder.layer.0.attention.self.distance_embedding.weight"


@pytest.mark.parametrize(
    "changes",
    [
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"is_encoder_decoder": True},
        {"pruned_heads": {"0": [1]}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"embedding_size": 8},
        {"emb_size": 8},
        {"num_key_value_heads": 1},
        {"attention_type": "block_sparse"},
        {"feed_forward_type": "geglu"},
        {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"layer_norm_type": "rms_norm"},
        {"sliding_window": 16},
        {"per_layer_config": {"0": {"intermediate_size": 16}}},
        {"auto_map": {"AutoModelForMaskedLM": "modeling.Other"}},
        {"hidden_act": "no_such_activation"},
    ],
    ids=lambda changes: "-".join(f"{k}={v}"[:40] for k, v in changes.items()),
)
def test_a_key_that_may_change_the_arithmetic_is_refused_by_name(make_folder, tokenizer, changes):
    folder = edit_config(make_folder(), **changes)
    with pytest.raises(ConfigError) as caught:
        load_model(folder, tokenizer=tokenizer)
    said = str(caught.value)
    assert all(key in said for key in changes) or "is a decoder" in said
    with pytest.raises(ConfigError):
        load_scorer(folder)


@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_act"])
def test_a_size_that_no_weight_tells_is_not_filled_in_by_a_default(make_folder, tokenizer, key):
    folder = make_folder(num_attention_heads=4)
    said = json.loads(Path(folder, "config.json").read_text())[key]
    edit_config(folder, without=[key])
    with pytest.raises(ConfigError, match=f"lacks {key}"):
        load_model(folder, tokenizer=tokenizer)
    edit_config(folder, **{key: said})
    assert getattr(load_model(folder, tokenizer=tokenizer).model.config, key) == said


# As transformers 4.8, google's converter, huawei's TinyBERT and deepset write them.
PUBLISHED = {
    "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
    "gradient_checkpointing": False,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
    "output_past": True,
    "cell": {},
    "emb_size": 24,
    "structure": [],
    "pre_trained": "",
    "training": "",
    "name": "Bert",
    "language": "german",
    "num_labels": 2,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "max_length": 20,
    "num_beams": 1,
    "do_sample": False,
    "top_k": 50,
    "temperature": 1.0,
    "pruned_heads": {},
    "auto_map": {"AutoTokenizer": ["tokenization.Other", None]},
}


def test_notes_of_published_configurations_change_nothing(make_folder, tokenizer):
    plain = load_model(make_folder(), tokenizer=tokenizer).model
    noted = load_model(edit_config(make_folder("noted"), **PUBLISHED), tokenizer=tokenizer).model
    ids = tokenizer(["the quick dog"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, noted(ids).logits)


@pytest.fixture
def refused(make_folder, tokenizer, failures):
    """What the contract says of a folder in a role, beside one that is fine."""

    def refused(role, folder, **needs):
        models = dict.fromkeys(("student", "teacher"), make_folder("fine")) | {role: folder}
        return failures(
            **{other: load_model(m, tokenizer=tokenizer) for other, m in models.items()}, **needs
        )

    return refused


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (BertForMaskedLM, EXTRA),
        (BertModel, EXTRA.removeprefix("bert.")),
        (BertForMaskedLM, "bert.embeddings.segment_embeddings.weight"),
        (BertForMaskedLM, "bert.encoder.rotary.inv_freq"),
        (BertForMaskedLM, "cls.predictions.transform.extra.weight"),
        (BertForMaskedLM, "adapter.weight"),
    ],
)
def test_a_weight_without_a_place_is_refused_by_name(make_folder, refused, role, kind, name):
    folder = edit_weights(make_folder("x", kind=kind), lambda w: w | {name: torch.ones(3)})
    (failure,) = refused(role, folder)
    assert name in failure and role in failure and "1 weights" in failure
    if kind is BertForMaskedLM:
        with pytest.raises(ContractError, match=re.escape(name)):
            load_scorer(folder)


@pytest.mark.parametrize("kind", [BertForPreTraining, BertModel])
def test_heads_of_other_tasks_and_constants_need_no_place(make_folder, refused, kind):
    prefix = "" if kind is BertModel else "bert."
    others = {
        f"{prefix}embeddings.position_ids": torch.arange(64)[None],
        "fit_dense.weight": torch.ones(3, 3),
        "fit_denses.1.bias": torch.ones(3),
        "classifier.weight": torch.ones(2, 3),
    }
    folder = edit_weights(make_folder("x", kind=kind), lambda w: w | others)
    assert not refused("teacher", folder)


def test_a_student_may_begin_as_the_first_layers_and_nothing_else_may(
    make_folder, tokenizer, refused
):
    folder = edit_config(make_folder("deep", num_hidden_layers=4), num_hidden_layers=2)
    assert not refused("student", folder)
    student = load_model(folder, tokenizer=tokenizer)
    assert len(student.unexpected) == 2 * 16
    assert student.unexpected[0].startswith("bert.encoder.layer.2.")
    assert "32 weights" in refused("teacher", folder)[0]
    asked = refused("student", folder, needs_student_head=True)  # and not trained further
    assert "32 weights" in asked[0]
    with pytest.raises(ContractError, match="32 weights"):
        load_scorer(folder)
    torn = "bert.encoder.layer.3.output.dense.bias"
    edit_weights(folder, lambda w: {name: w[name] for name in w if name != torn})
    assert "31 weights" in refused("student", folder)[0]


def test_a_training_run_says_what_its_student_leaves_out(
    make_folder, tokenizer, shard_set, caplog, monkeypatch
):
    from fitb.training import setup

    folder = edit_config(make_folder("deep", num_hidden_layers=4), num_hidden_layers=2)
    loaded = load_model(folder, tokenizer=tokenizer)
    monkeypatch.setattr(setup, "load_models", lambda *args: (loaded, None))
    config = Config("run", model=ModelConfig(student=folder, teacher=None))
    with caplog.at_level("WARNING"):
        setup._models(config, None, tokenizer)
    (said,) = [r.getMessage() for r in caplog.records if "leaves out" in r.getMessage()]
    assert "32 weights" in said and "bert.encoder.layer.2." in said


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["bert.encoder.layer.1.output.dense.weight", "cls.predictions.bias"]
)
def test_a_weight_that_is_not_finite_is_named_when_it_is_loaded(
    make_folder, tokenizer, name, number
):
    def spoil(weights):
        weights[name].flatten()[-1] = number
        return weights

    folder = edit_weights(make_folder(), spoil)
    with pytest.raises(DataError, match=f"{name} not finite"):
        load_model(folder, tokenizer=tokenizer)


def test_a_configuration_of_other_types_is_unreadable_and_no_traceback(make_folder, tokenizer):
    for changes in ({"hidden_size": "24"}, {"hidden_act": ["gelu"]}, {"layer_norm_eps": {}}):
        with pytest.raises(DataError, match=r"config\.json: "):
            load_model(edit_config(make_folder(), **changes), tokenizer=tokenizer)
