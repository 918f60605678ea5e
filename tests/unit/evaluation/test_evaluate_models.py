"""Evaluations of saved models: baselines, sets, masks, categories."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from evaluating import counts_of, write_shards
from transformers import BertForMaskedLM

from fitb.base.errors import ConfigError, ContractError
from fitb.base.world import World
from fitb.config import AlgorithmsConfig
from fitb.config.parser import parse
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.masking import Vocabulary
from fitb.evaluation.baselines import count_tokens, untrained
from fitb.evaluation.count import choose_rows
from fitb.evaluation.data_parallel import Ranks
from fitb.evaluation.evaluate import evaluate
from fitb.evaluation.evaluate_config import EvaluateConfig, masks_of
from fitb.evaluation.folder import check_array
from fitb.evaluation.metrics import metrics_of
from fitb.evaluation.printed import evaluation_text
from fitb.shards.shard_set import ShardSet


@pytest.fixture(scope="module")
def mine(general, tmp_path_factory):
    return write_shards(
        tmp_path_factory.mktemp("sets") / "mine", 1, tokenizer=f"{general}/tokenizer"
    )


def test_every_model_that_is_asked_for_gets_a_row(make_model, general):
    config = EvaluateConfig(
        model=make_model(1), frozen=make_model(2), control=make_model(3), teacher=make_model(4),
        shards=general, rows=8,
    )  # fmt: skip
    result = evaluate(config)
    rows = result["sets"]["validation"]["models"]
    assert list(rows) == ["model", "unigram", "untrained", "frozen", "control", "teacher"]
    for role, row in rows.items():
        assert len(row["metrics"]) == 9, role
    assert rows["teacher"]["metrics"]["kl"]["value"] == 0
    assert rows["teacher"]["metrics"]["agreement"]["value"] == 1
    assert rows["model"]["metrics"]["kl"]["value"] > 0
    assert result["metrics"] == rows["model"]["metrics"]
    text = evaluation_text(result)
    told = ("agreement", "input embeddings", "multi_piece", "name", "span_em", "ppl", "whole_word")
    for expected in (*rows, *told, "15% of tokens", "seed 0", "8 rows", ".."):
        assert expected in text
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_values_of_a_model_do_not_depend_on_what_stands_beside_it(make_model, general):
    alone = {"model": make_model(1), "shards": general, "rows": 8}
    beside = evaluate(EvaluateConfig(**alone, frozen=make_model(2), teacher=make_model(4)))
    plain = evaluate(EvaluateConfig(**alone, baselines=False))
    assert list(plain["sets"]["validation"]["models"]) == ["model"]
    for metric, interval in plain["metrics"].items():
        assert beside["metrics"][metric] == interval


def test_tokens_are_counted_in_training_rows_and_special_ones_not(general, monkeypatch):
    monkeypatch.setattr("fitb.evaluation.baselines._BLOCK_ROWS", 3)
    shards = ShardSet.open(general, "train")
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    for wanted in (0, 7):
        rows = choose_rows(shards.num_rows, wanted)
        expected = Counter(shards.read(rows).input_ids.ravel().tolist())
        found = count_tokens(shards, Vocabulary.of(tokenizer), wanted, Ranks(World()))
        for token in range(len(tokenizer)):
            special = token in tokenizer.all_special_ids
            assert found[token] == (0 if special else expected[token])


def test_an_untrained_model_has_the_geometry_and_nothing_else(make_model):
    model = BertForMaskedLM.from_pretrained(make_model(1))
    before = torch.get_rng_state()
    fresh, again, other = untrained(model, 5), untrained(model, 5), untrained(model, 6)
    assert torch.equal(torch.get_rng_state(), before)
    sizes = [{n: p.shape for n, p in one.named_parameters()} for one in (fresh, model)]
    assert sizes[0] == sizes[1] and not fresh.training
    first, *others = (
        m.bert.embeddings.word_embeddings.weight for m in (fresh, again, other, model)
    )
    assert [torch.equal(first, each) for each in others] == [True, False, False]


def test_masks_are_those_of_following_seeds(make_model, general):
    config = EvaluateConfig(model=make_model(1), shards=general, rows=8, seed=3, masks=3)
    result = evaluate(config)
    found_set = result["sets"]["validation"]
    found = found_set["models"]["model"]
    counts = [counts_of(make_model(1), general, 8, seed) for seed in (3, 4, 5)]
    assert found_set["num_rows"] == 8
    assert found_set["num_slots"] == counts[0].column("num_slots").sum()
    assert found_set["fingerprint"] == ShardSet.open(general, "validation").fingerprint
    assert found["tokens_per_s"] > 0
    losses = [float(metrics_of(each.totals()[0])["loss"]) for each in counts]
    assert found["over_masks"]["loss"]["mean"] == pytest.approx(np.mean(losses))
    assert found["over_masks"]["loss"]["sd"] == pytest.approx(np.std(losses, ddof=1))
    assert found["metrics"]["loss"]["value"] == pytest.approx(losses[0])
    assert len(set(losses)) == 3
    spread = evaluation_text(result).split("over 3 masks", 1)[1]
    assert f"{np.mean(losses):.4f}" in spread and f"+-{np.std(losses, ddof=1):.4f}" in spread
    once = evaluate(EvaluateConfig(model=make_model(1), shards=general, rows=8, seed=3))
    assert once["metrics"]["loss"] == found["metrics"]["loss"]
    assert once["sets"]["validation"]["models"]["model"]["over_masks"]["loss"]["sd"] is None


def test_sets_are_evaluated_side_by_side(make_model, general, mine):
    flags = ["--model", make_model(1), "--sets.general", general, "--sets.mine", mine]
    config = parse(EvaluateConfig, "fitb evaluate", [*flags, "--rows", "6"])
    result = evaluate(config)
    assert list(result["sets"]) == ["general", "mine"]
    for name, where in (("general", general), ("mine", mine)):
        alone = evaluate(EvaluateConfig(model=make_model(1), shards=where, rows=6))
        assert alone["metrics"] == result["sets"][name]["models"]["model"]["metrics"]
        assert f"{name}: validation split" in evaluation_text(result)


def test_what_does_not_fit_the_shards_is_refused(make_model, general, make_folder, tmp_path):
    other = write_shards(tmp_path, 2, vocab_size=300)
    bert = BertForMaskedLM.from_pretrained(make_model(1)).bert
    bert.save_pretrained(tmp_path / "headless")
    load_tokenizer(f"{general}/tokenizer").save_pretrained(tmp_path / "headless")
    for model, sets, said in (
        (make_model(1), {"general": general, "other": other}, "fingerprint|vocabulary"),
        (make_folder(), {"general": general}, "vocabulary"),
        (str(tmp_path / "headless"), {"general": general}, "lacks a trained MLM head"),
    ):
        with pytest.raises(ContractError, match=said):
            evaluate(EvaluateConfig(model=model, sets=sets))


def test_categories_add_up_and_names_are_told(make_model, general):
    result = evaluate(EvaluateConfig(model=make_model(1), shards=general))
    about = result["sets"]["validation"]
    sizes = about["categories"]
    for key in ("num_slots", "num_words"):
        assert sizes["single_piece"][key] + sizes["multi_piece"][key] == about[key]
    assert sizes["name"]["num_words"] > 0 and sizes["url"]["num_slots"] == 0
    by_category = about["models"]["model"]["categories"]
    parts = [by_category[name]["loss"]["value"] for name in ("single_piece", "multi_piece")]
    slots = [sizes[name]["num_slots"] for name in ("single_piece", "multi_piece")]
    assert np.average(parts, weights=slots) == pytest.approx(result["metrics"]["loss"]["value"])
    assert by_category["url"]["loss"]["value"] is None


def test_names_are_not_told_where_the_input_is_not_to_be_read(make_model, general):
    config = EvaluateConfig(model=make_model(1), shards=general, rows=4, originals=False)
    result = evaluate(config)
    about = result["sets"]["validation"]
    assert "originals=false" in about["not_told"]["name"]
    assert "name" not in about["categories"] and "number" in about["categories"]
    assert "no name: the tokenizer lowercases" in evaluation_text(result)


def test_what_an_evaluation_needs_is_said_before_it_starts():
    for wrong, said in (
        ({}, "give one of them"),
        ({"model": "a", "models": ["b"], "out": "c"}, "give one of them"),
        ({"models": ["b"]}, "without out"),
        ({"model": "a", "masks": 0}, "masks=0"),
        ({"model": "a", "rows": -1}, "rows=-1"),
        ({"model": "a", "batch": 0}, "batch=0"),
        ({"model": "a", "unigram_rows": -1}, "unigram_rows=-1"),
    ):
        with pytest.raises(ConfigError, match=said):
            EvaluateConfig(**wrong)
    for number in (0, 2):
        with pytest.raises(ConfigError, match=f"--array {number};"):
            check_array(EvaluateConfig(model="a"), number)


@pytest.mark.parametrize(
    ("model", "text", "version"),
    [
        ("run/export", "algorithms: {masks: 2}", 2),
        ("run/export", "steps: 3", 1),
        ("run/export", "[", AlgorithmsConfig.masks),
        ("run/bert", "steps: 3", AlgorithmsConfig.masks),  # a folder beside some configuration
        ("hub/name", "", AlgorithmsConfig.masks),
    ],
)
def test_masks_are_those_of_the_run_of_which_the_model_is_the_export(
    tmp_path, model, text, version
):
    (tmp_path / model).mkdir(parents=True)
    if text:
        (tmp_path / "run" / "config.yaml").write_text(text)
    assert masks_of(str(tmp_path / model)) == version
