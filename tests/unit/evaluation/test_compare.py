"""Two models on the same rows, paired; and how far training moved one of them."""

import json

import numpy as np
import pytest
from evaluating import counts_of, write_shards
from transformers import BertForMaskedLM

from fitb.base.errors import ConfigError
from fitb.evaluation.baselines import drift
from fitb.evaluation.compare import compare
from fitb.evaluation.evaluate import evaluate
from fitb.evaluation.evaluate_config import CompareConfig, EvaluateConfig
from fitb.evaluation.metrics import differences, summaries
from fitb.evaluation.printed import comparison_text
from fitb.shards.shard_set import ShardSet


def test_a_model_compared_with_itself_does_not_differ(make_model, general):
    with pytest.raises(ConfigError, match="fitb compare A B"):
        CompareConfig(models=[make_model(1)])
    result = compare(CompareConfig(models=[make_model(1)] * 2, shards=general, rows=10))
    found = result["sets"]["validation"]
    for apart in (found["differences"], *found["by_category"].values()):
        for each in apart.values():
            if each["first"] is not None:
                assert (each["value"], each["low"], each["high"], each["p"]) == (0, 0, 0, 1)
    assert "p" in comparison_text(result)


def test_a_comparison_holds_both_models_and_their_paired_difference(make_model, general):
    paths = [make_model(1), make_model(2)]
    result = compare(CompareConfig(models=paths, shards=general, rows=10, teacher=make_model(4)))
    found = result["sets"]["validation"]["differences"]
    assert set(found) >= {"loss", "ece", "kl"}
    counts = [counts_of(path, general, 10) for path in paths]
    for name in ("loss", "top5", "span_em"):
        each = found[name]
        assert each["first"] == pytest.approx(summaries(counts[0])[0][name].value)
        assert each["second"] == pytest.approx(summaries(counts[1])[0][name].value)
        paired = differences(*counts)[0][name]
        assert (each["low"], each["high"]) == pytest.approx((paired.low, paired.high))
        assert 0 < each["p"] <= 1


def test_what_is_kept_of_a_set_holds_no_secret_of_its_url(make_model, general, monkeypatch):
    """A signature stood in the JSON, which people send around."""
    url = "https://key:hunter2@host/shards?sig=x9y8"
    opened = ShardSet.open(general, "validation")
    monkeypatch.setattr(ShardSet, "open", lambda where, split: opened)
    result = compare(CompareConfig(models=[make_model(1)] * 2, shards=url, rows=2))
    assert result["sets"]["validation"]["shards"] == "https://***@host/shards?***"
    for shown in (json.dumps(result), comparison_text(result)):
        assert "hunter2" not in shown and "x9y8" not in shown


def test_drift_is_measured_row_by_row(make_model):
    before, after = (BertForMaskedLM.from_pretrained(make_model(seed)) for seed in (1, 2))
    first, second = (
        m.bert.embeddings.word_embeddings.weight.detach().double().numpy() for m in (before, after)
    )
    distance = np.sqrt(((first - second) ** 2).sum(1))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = (first * second).sum(1)[norms > 0] / norms[norms > 0]
    found = drift(before, after, 3)
    assert found["shared"]["num_tokens"] == len(first) - 3 and found["added"]["num_tokens"] == 3
    assert found["shared"]["l2_mean"] == pytest.approx(distance[:-3].mean())
    assert found["shared"]["l2_max"] == pytest.approx(distance[:-3].max())
    assert found["added"]["l2_max"] == pytest.approx(distance[-3:].max())
    assert found["added"]["cosine_mean"] == pytest.approx(cosine[-3:].mean())
    assert found["shared"]["cosine_min"] == pytest.approx(cosine[:-3].min())
    same = drift(before, before, 0)
    assert list(same) == ["shared"]
    assert same["shared"]["l2_max"] == 0 and same["shared"]["cosine_min"] == pytest.approx(1)


def test_drift_of_added_tokens_counts_from_the_mean_of_their_pieces(make_model, general, tmp_path):
    (tmp_path / "tokens.txt").write_text("quickfox\nlazyreading\n")
    tokens = {"tokenizer": f"{general}/tokenizer", "add_tokens": str(tmp_path / "tokens.txt")}
    added = write_shards(tmp_path / "added", 1, **tokens)
    config = EvaluateConfig(model=make_model(2), frozen=make_model(1), shards=added, rows=4)
    found = evaluate(config)["drift"]
    size = BertForMaskedLM.from_pretrained(make_model(1)).config.vocab_size
    assert [found[kind]["num_tokens"] for kind in ("shared", "added")] == [size, 2]
    assert found["added"]["l2_max"] > 0
