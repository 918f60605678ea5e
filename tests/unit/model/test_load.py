import json
from pathlib import Path

import pytest
import torch
from model_folders import edit_config, edit_weights
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
)

from fitb.base.errors import ConfigError, DataError
from fitb.config import Geometry
from fitb.corpus.tokenizer import load_tokenizer
from fitb.model.load import encoder, load_model, num_parameters
from fitb.shards.tokenizer import tokenizer_fingerprint

SMALL = Geometry(num_hidden_layers=2, hidden_size=24, intermediate_size=32, num_attention_heads=3)


class Vocabulary30522:
    pad_token_id = 0

    def __len__(self):
        return 30522


def test_tinybert4_has_the_published_number_of_parameters():
    model = load_model(Geometry(), tokenizer=Vocabulary30522()).model
    pooler = 312 * 312 + 312  # the published count includes it, a masked language model has none
    assert num_parameters(encoder(model)) == 14_350_248 - pooler
    head = (312 * 312 + 312) + 2 * 312 + 30522  # transform, LayerNorm, bias; decoder is tied
    assert num_parameters(model) == 14_350_248 - pooler + head


def test_a_folder_gives_back_the_weights_that_were_saved(make_folder, tokenizer, tokenizer_folder):
    folder = make_folder()
    saved = BertForMaskedLM.from_pretrained(folder).state_dict()
    loaded = load_model(folder, tokenizer=tokenizer)
    assert loaded.missing == ()
    assert loaded.source == folder
    assert loaded.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer_folder)
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == "sdpa"
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, saved[name])
        assert weight.dtype == torch.float32


def test_half_precision_weights_are_loaded_as_float32(make_folder, tokenizer):
    folder = make_folder()
    BertForMaskedLM.from_pretrained(folder).half().save_pretrained(folder)
    model = load_model(folder, tokenizer=tokenizer).model
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
def test_checkpoints_with_a_head_miss_nothing(make_folder, tokenizer, kind):
    assert load_model(make_folder(kind=kind), tokenizer=tokenizer).missing == ()


def test_a_head_without_its_bias_is_noticed(make_folder, tokenizer):
    name = "cls.predictions.bias"
    folder = edit_weights(make_folder(), lambda w: {n: w[n] for n in w if n != name})
    assert name in load_model(folder, tokenizer=tokenizer).missing


@pytest.mark.parametrize("kind", ["geometry", "folder without a head"])
def test_random_weights_follow_the_seed_and_leave_the_global_state_alone(
    make_folder, tokenizer, kind
):
    source = SMALL if kind == "geometry" else make_folder(kind=BertModel)
    before = torch.random.get_rng_state()
    first = load_model(source, tokenizer=tokenizer, seed=1).model
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    again, other = (load_model(source, tokenizer=tokenizer, seed=seed).model for seed in (1, 2))
    weights = [m.cls.predictions.transform.dense.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_dropout_replaces_both_probabilities_or_none(make_folder, tokenizer):
    folder = make_folder(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)

    def rates(source, dropout):
        model = load_model(source, tokenizer=tokenizer, dropout=dropout).model
        modules = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        assert modules
        return model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob

    assert rates(folder, None) == (0.3, 0.2)
    assert rates(folder, 0.0) == (0.0, 0.0)
    assert rates(SMALL, None) == (0.1, 0.1)
    assert rates(SMALL, 0.05) == (0.05, 0.05)
    with pytest.raises(ConfigError, match="dropout=1.5"):
        rates(SMALL, 1.5)


def test_another_model_type_is_refused_before_it_becomes_a_random_bert(tmp_path, tokenizer):
    config = DistilBertConfig(vocab_size=50, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    DistilBertForMaskedLM(config).save_pretrained(tmp_path / "distil")
    with pytest.raises(ConfigError, match="'distilbert'; expected a BERT encoder"):
        load_model(str(tmp_path / "distil"), tokenizer=tokenizer)


@pytest.mark.parametrize("source", ["bert-of-nobody", "nobody/bert", "./not/here", "/not/here"])
def test_what_is_not_there_is_one_line_with_the_way_out(source, tokenizer):
    for load in (load_tokenizer, lambda name: load_model(name, tokenizer=tokenizer)):
        with pytest.raises(DataError) as caught:
            load(source)
        message = str(caught.value)
        assert source in message
        assert "HF_HUB_OFFLINE" in message
        assert "local folder" in message
        assert "\n" not in message


def test_an_empty_folder_says_what_it_lacks(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"holds no config.json"):
        load_model(str(tmp_path), tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"holds no tokenizer.json"):
        load_tokenizer(tmp_path)


def test_missing_and_damaged_weights_are_data_errors(make_folder, tokenizer):
    folder = make_folder()
    weights = Path(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="weights of model .* cannot be read"):
        load_model(folder, tokenizer=tokenizer)
    weights.unlink()
    with pytest.raises(DataError, match=r"holds no model.safetensors"):
        load_model(folder, tokenizer=tokenizer)


def test_weights_of_other_shapes_are_named(make_folder, tokenizer):
    folder = edit_config(make_folder(), vocab_size=len(tokenizer) + 3)
    with pytest.raises(DataError, match="word_embeddings.weight is .* and should be"):
        load_model(folder, tokenizer=tokenizer)


@pytest.mark.parametrize("named_class", ["BertTokenizer", "BertTokenizerFast", None])
def test_a_cased_tokenizer_stays_cased_whatever_its_folder_names(tmp_path, named_class):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "Dog"]
    raw = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=False)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    if named_class:
        named = json.dumps({"tokenizer_class": named_class})
        (tmp_path / "tokenizer_config.json").write_text(named)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer("The [MASK] Dog", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["The", "[MASK]", "Dog"]
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]


def test_loading_says_nothing_of_its_own(make_folder, tokenizer, capfd):
    folder = make_folder(kind=BertModel)
    capfd.readouterr()  # the fixture's progress bars
    load_model(folder, tokenizer=tokenizer)
    out, err = capfd.readouterr()
    assert out == ""
    others = [line for line in err.splitlines() if line.strip() and "trained_length" not in line]
    assert others == []
