"""Evaluations of saved models: baselines, sets, masks, comparisons, folders of many results."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from fitb.config import Geometry
from fitb.corpus.shards import ShardSet
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.masking import Vocabulary
from fitb.errors import ConfigError, ContractError
from fitb.evaluate import compare as comparing
from fitb.evaluate import folder as many
from fitb.evaluate.baselines import count_tokens, drift, untrained
from fitb.evaluate.compare import compare
from fitb.evaluate.config import CompareConfig, EvaluateConfig
from fitb.evaluate.count import choose_rows, count
from fitb.evaluate.folder import evaluate_all, expand, render_all, share_of
from fitb.evaluate.metrics import difference, metrics_of, summarise
from fitb.evaluate.ranks import Ranks
from fitb.evaluate.run import evaluate
from fitb.evaluate.table import render
from fitb.flags import parse
from fitb.model.load import load_model
from fitb.prepare.config import PrepareConfig
from fitb.prepare.run import prepare
from fitb.world import World

SMALL = Geometry(num_hidden_layers=1, hidden_size=12, intermediate_size=16)


def write_shards(folder, seed, **changes):
    draw = np.random.default_rng(seed)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "reading", "in", "Paris"]
    made_up = ["".join(draw.choice(list("aeioubdgklmnst"), 3)) for _ in range(80)]
    documents = [" ".join([*draw.choice(words, 40), *made_up[i : i + 9]]) + "." for i in range(80)]
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    settings = {
        "out": str(folder / "shards"),
        "source": "text",
        "files": [str(folder / "text.txt")],
        "vocab_size": 256,
        "length": 32,
        "validation_fraction": 0.3,
        "shard_mb": 0.005,
        "workers": 1,
    }
    prepare(PrepareConfig(**(settings | changes)))
    return str(folder / "shards")


@pytest.fixture(scope="module")
def general(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("sets") / "general", 0)


@pytest.fixture(scope="module")
def mine(general, tmp_path_factory):
    return write_shards(
        tmp_path_factory.mktemp("sets") / "mine", 1, tokenizer=f"{general}/tokenizer"
    )


@pytest.fixture(scope="module")
def make_model(general, tmp_path_factory):
    """A folder with a model of random weights, sharp enough to be right now and then."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(f"{general}/tokenizer")

    def make(seed):
        path = folder / str(seed)
        if not path.exists():
            model = load_model(SMALL, tokenizer=tokenizer, length=32, seed=seed).model
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(6)
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
        return str(path)

    return make


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
    text = render(result)
    for expected in (*rows, "agreement", "input embeddings", "multi_piece", "name"):
        assert expected in text
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_values_of_a_model_do_not_depend_on_what_stands_beside_it(make_model, general):
    alone = {"model": make_model(1), "shards": general, "rows": 8}
    beside = evaluate(EvaluateConfig(**alone, frozen=make_model(2), teacher=make_model(4)))
    plain = evaluate(EvaluateConfig(**alone, baselines=False))
    assert list(plain["sets"]["validation"]["models"]) == ["model"]
    for metric, interval in plain["metrics"].items():
        assert beside["metrics"][metric] == interval


def test_tokens_are_counted_in_training_rows_and_special_ones_not(general):
    shards = ShardSet.open(general, "train")
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    for wanted in (0, 7):
        rows = choose_rows(shards.num_rows, wanted)
        expected = Counter(shards.read(rows).input_ids.ravel().tolist())
        found = count_tokens(shards, Vocabulary.of(tokenizer), wanted, Ranks(World()))
        for token in range(len(tokenizer)):
            special = token in tokenizer.all_special_ids
            assert found[token] == (0 if special else expected[token])


def test_tokens_counted_by_several_ranks_add_up(general, monkeypatch):
    monkeypatch.setattr("fitb.evaluate.baselines._BLOCK_ROWS", 3)
    shards = ShardSet.open(general, "train")
    vocabulary = Vocabulary.of(load_tokenizer(shards.tokenizer_folder))
    whole = count_tokens(shards, vocabulary, 0, Ranks(World()))
    parts = []

    class Share(Ranks):
        def gathered(self, found):
            parts.extend(found.values())
            return found

        def given(self, value):
            return value

    for rank in range(3):
        count_tokens(shards, vocabulary, 0, Share(World(rank, 3, rank)))
    np.testing.assert_array_equal(sum(parts), whole)


def test_an_untrained_model_has_the_geometry_and_nothing_else(make_model):
    model = BertForMaskedLM.from_pretrained(make_model(1))
    before = torch.get_rng_state()
    fresh, again, other = untrained(model, 5), untrained(model, 5), untrained(model, 6)
    assert torch.equal(torch.get_rng_state(), before)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    first, second, third, own = (
        m.bert.embeddings.word_embeddings.weight for m in (fresh, again, other, model)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third) and not torch.equal(first, own)
    assert not fresh.training


def test_masks_are_those_of_following_seeds(make_model, general):
    config = EvaluateConfig(model=make_model(1), shards=general, rows=8, seed=3, masks=3)
    found = evaluate(config)["sets"]["validation"]["models"]["model"]
    shards = ShardSet.open(general, "validation")
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    model = BertForMaskedLM.from_pretrained(make_model(1)).eval()
    counts = [
        count(
            model, shards, choose_rows(shards.num_rows, 8), seed=seed,
            vocabulary=Vocabulary.of(tokenizer), mask=config.mask,
        )
        for seed in (3, 4, 5)
    ]  # fmt: skip
    losses = [float(metrics_of(each.totals()[0])["loss"]) for each in counts]
    assert found["over_masks"]["loss"]["mean"] == pytest.approx(np.mean(losses))
    assert found["over_masks"]["loss"]["sd"] == pytest.approx(np.std(losses, ddof=1))
    assert found["metrics"]["loss"]["value"] == pytest.approx(losses[0])
    assert len(set(losses)) == 3
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
    assert "general: validation split" in render(result) and "mine: validation" in render(result)


def test_sets_of_another_tokenizer_are_refused(make_model, general, tmp_path):
    other = write_shards(tmp_path, 2, vocab_size=300)
    config = EvaluateConfig(model=make_model(1), sets={"general": general, "other": other})
    with pytest.raises(ContractError, match="fingerprint|vocabulary"):
        evaluate(config)


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
    assert "no name: the tokenizer lowers capitals" in render(result)


def test_a_model_compared_with_itself_does_not_differ(make_model, general):
    result = compare(CompareConfig(models=[make_model(1)] * 2, shards=general, rows=10))
    found = result["sets"]["validation"]
    for apart in (found["differences"], *found["by_category"].values()):
        for each in apart.values():
            if each["first"] is not None:
                assert (each["value"], each["low"], each["high"], each["p"]) == (0, 0, 0, 1)
    assert "p" in comparing.render(result)


def test_a_comparison_holds_both_models_and_their_paired_difference(make_model, general):
    paths = [make_model(1), make_model(2)]
    result = compare(CompareConfig(models=paths, shards=general, rows=10, teacher=make_model(4)))
    found = result["sets"]["validation"]["differences"]
    assert set(found) >= {"loss", "ece", "kl"}
    shards = ShardSet.open(general, "validation")
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    counts = [
        count(
            BertForMaskedLM.from_pretrained(path), shards, choose_rows(shards.num_rows, 10),
            vocabulary=Vocabulary.of(tokenizer), mask=CompareConfig(models=paths).mask,
        )
        for path in paths
    ]  # fmt: skip
    for name in ("loss", "top5", "span_em"):
        each = found[name]
        assert each["first"] == pytest.approx(summarise(counts[0])[name].value)
        assert each["second"] == pytest.approx(summarise(counts[1])[name].value)
        paired = difference(*counts, name)
        assert (each["low"], each["high"]) == pytest.approx((paired.low, paired.high))
        assert 0 < each["p"] <= 1


@pytest.mark.parametrize("models", [[], ["a"], ["a", "b", "c"]])
def test_two_models_are_compared_no_other_number(models):
    with pytest.raises(ConfigError, match="fitb compare A B"):
        CompareConfig(models=models)


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
    added = write_shards(
        tmp_path / "added", 1,
        tokenizer=f"{general}/tokenizer", add_tokens=str(tmp_path / "tokens.txt"),
    )  # fmt: skip
    config = EvaluateConfig(model=make_model(2), frozen=make_model(1), shards=added, rows=4)
    result = evaluate(config)
    assert result["drift"]["added"]["num_tokens"] == 2
    assert result["drift"]["added"]["l2_max"] > 0
    size = BertForMaskedLM.from_pretrained(make_model(1)).config.vocab_size
    assert result["drift"]["shared"]["num_tokens"] == size


@pytest.mark.parametrize(
    ("share", "env", "expected"),
    [
        (None, {}, (0, 1)),
        ("2/5", {}, (2, 5)),
        ("0/1", {"SLURM_ARRAY_TASK_ID": "7"}, (0, 1)),
        (None, (3, 0, 9, 10, 1), (3, 10)),
        (None, (6, 2, 8, 4, 2), (2, 4)),
        (None, (4, 4, 4, 1, 1), (0, 1)),
    ],
)
def test_a_task_takes_its_share_of_the_models(share, env, expected):
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    if isinstance(env, tuple):
        env = {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(names, env, strict=True)}
    assert share_of(share, env) == expected


@pytest.mark.parametrize("share", ["3/3", "x", "1", "-1/2"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="I/N"):
        share_of(share, {})


def test_an_array_with_gaps_is_refused():
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    values = {f"SLURM_ARRAY_TASK_{n}": v for n, v in zip(names, "71731", strict=True)}
    with pytest.raises(ConfigError, match="has gaps"):
        share_of(None, values)


def test_patterns_mean_folders_each_once_and_sorted(tmp_path):
    for name in ("step-2", "step-1", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-3.txt").touch()
    found = expand([str(tmp_path / "step-2"), str(tmp_path / "step-*"), "hub/name"])
    assert found == [str(tmp_path / "step-2"), str(tmp_path / "step-1"), "hub/name"]
    with pytest.raises(ConfigError, match="matches no folder"):
        expand([str(tmp_path / "nothing-*")])


@pytest.fixture
def evaluated(monkeypatch):
    """Which models were evaluated, in order."""
    seen = []

    def noting(config, ranks):
        seen.append(config.model)
        return evaluate(config, ranks)

    monkeypatch.setattr("fitb.evaluate.run.evaluate", noting)
    return seen


def test_shares_fill_a_folder_and_what_is_there_is_not_done_again(
    make_model, general, tmp_path, evaluated
):
    paths = [make_model(seed) for seed in (1, 2, 3)]
    settings = {"models": paths, "out": str(tmp_path / "out"), "shards": general, "rows": 4}
    first = evaluate_all(EvaluateConfig(**settings, share="0/2"), {})
    assert evaluated == [paths[0], paths[2]]
    assert first["missing"] == [paths[1]]
    assert "2 of 3 models are evaluated; not yet: " + paths[1] in render_all(first)
    whole = evaluate_all(EvaluateConfig(**settings, share="1/2"), {})
    assert evaluated == [paths[0], paths[2], paths[1]]
    assert whole["missing"] == [] and list(whole["models"]) == paths
    again = evaluate_all(EvaluateConfig(**settings), {})
    assert len(evaluated) == 3 and again == whole
    alone = evaluate(EvaluateConfig(model=paths[1], shards=general, rows=4))
    assert whole["models"][paths[1]]["metrics"] == alone["metrics"]
    text = render_all(whole)
    for expected in (*paths, "unigram", "untrained", "span_em"):
        assert expected in text
    assert len(list((tmp_path / "out").glob("*.json"))) == 3


def test_other_settings_or_other_weights_are_another_result(
    make_model, general, tmp_path, evaluated
):
    path = tmp_path / "copy"
    shutil.copytree(make_model(1), path)
    settings = {"model": str(path), "out": str(tmp_path / "out"), "shards": general, "rows": 4}
    evaluate_all(EvaluateConfig(**settings), {})
    evaluate_all(EvaluateConfig(**settings, json=True), {})
    assert len(evaluated) == 1
    evaluate_all(EvaluateConfig(**settings, seed=1), {})
    assert len(evaluated) == 2
    shutil.copy(f"{make_model(2)}/model.safetensors", path / "model.safetensors")
    found = evaluate_all(EvaluateConfig(**settings), {})
    assert len(evaluated) == 3
    other = evaluate(EvaluateConfig(model=make_model(2), shards=general, rows=4))
    assert found["models"][str(path)]["metrics"] == other["metrics"]


def test_a_finished_folder_is_printed_without_torch(make_model, general, tmp_path):
    import subprocess
    import sys

    flags = ["--model", make_model(1), "--shards", general, "--rows", "4"]
    flags += ["--out", str(tmp_path / "out")]
    evaluate_all(parse(EvaluateConfig, "fitb evaluate", flags), {})
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"from fitb.cli import main; sys.exit(main(['evaluate', *{flags!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unigram" in done.stdout


def test_what_an_evaluation_needs_is_said_before_it_starts():
    for wrong, said in (
        ({}, "give one of them"),
        ({"model": "a", "models": ["b"], "out": "c"}, "give one of them"),
        ({"models": ["b"]}, "without out"),
        ({"model": "a", "masks": 0}, "masks=0"),
        ({"model": "a", "unigram_rows": -1}, "unigram_rows=-1"),
    ):
        with pytest.raises(ConfigError, match=said):
            EvaluateConfig(**wrong)
    for number, config in ((0, {"model": "a"}), (2, {"model": "a"})):
        with pytest.raises(ConfigError, match=f"--array {number}"):
            many.check_array(EvaluateConfig(**config), number)
