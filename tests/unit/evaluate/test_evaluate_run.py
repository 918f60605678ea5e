import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from fitb.config import Geometry, MaskConfig
from fitb.corpus.shards import Rows, ShardSet
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.batch import Batch
from fitb.data.masking import IGNORE_INDEX, Vocabulary, mask_rows
from fitb.errors import ConfigError, ContractError
from fitb.evaluate.config import EvaluateConfig
from fitb.evaluate.count import EVALUATION_EPOCH, choose_rows, count
from fitb.evaluate.counts import PLAIN
from fitb.evaluate.run import evaluate
from fitb.evaluate.table import render
from fitb.model.load import load_model
from fitb.prepare.preparation import prepare
from fitb.prepare.settings import PrepareConfig

STRATEGIES = ("token", "whole_word", "span")
LENGTH = 24


@dataclasses.dataclass
class MemoryShards:
    """Rows of made-up words of one to four pieces; the last row is padded."""

    input_ids: np.ndarray
    word_starts: np.ndarray

    def read(self, rows):
        return Rows(self.input_ids[rows], self.word_starts[rows])

    def document_numbers(self, rows):
        return 100 * rows


@pytest.fixture
def shards(tokenizer):
    draw = np.random.default_rng(3)
    ids = draw.integers(5, len(tokenizer), (11, LENGTH))
    starts = draw.random((11, LENGTH)) < 0.5
    starts[:, 1], starts[7, 1:3] = True, False  # row 7 begins inside a word
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids[4, 9] = tokenizer.sep_token_id
    ids[10, 5], ids[10, 6:] = tokenizer.sep_token_id, tokenizer.pad_token_id
    starts[4, 10] = True
    return MemoryShards(ids, starts & (ids >= 5))


@pytest.fixture
def vocabulary(tokenizer):
    return Vocabulary.of(tokenizer)


@pytest.fixture
def model(tokenizer):
    sizes = Geometry(
        num_hidden_layers=2, hidden_size=24, intermediate_size=32, num_attention_heads=3
    )
    model = load_model(sizes, tokenizer=tokenizer).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


class Oracle(torch.nn.Module):
    """Stands where a model stands: hidden states are one-hot true tokens, the head is linear."""

    def __init__(self, shards, vocab_size, wrong):
        super().__init__()
        self.config = BertConfig(max_position_embeddings=LENGTH)
        self.scale = torch.nn.Parameter(torch.tensor(20.0))
        self.hidden = torch.nn.functional.one_hot(
            torch.from_numpy(shards.input_ids), vocab_size
        ).float()
        for row, place in wrong:
            self.hidden[row, place, (shards.input_ids[row, place] + 1) % vocab_size] = 2.0

    def bert(self, input_ids, attention_mask):
        assert input_ids.shape == attention_mask.shape == self.hidden.shape[:2]
        return (self.hidden.to(self.scale.dtype),)

    def cls(self, hidden):
        return hidden * self.scale


def naive_row(model, shards, row, vocabulary, mask, seed):
    """One row alone: all logits at all positions, then Python loops."""
    ids, starts = shards.input_ids[row], shards.word_starts[row]
    masked = mask_rows(
        ids[None], starts[None], np.array([row]), np.array([EVALUATION_EPOCH]),
        seed=seed, vocabulary=vocabulary, config=mask,
    )  # fmt: skip
    batch = Batch.of(masked)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[0]
    found = dict.fromkeys(("loss_sum", "num_slots", "top1", "top5", "num_words", "words_right"), 0)
    rank_at = {}
    for place, label in zip(batch.slots[0].tolist(), batch.labels[0].tolist(), strict=True):
        if label == IGNORE_INDEX:
            continue
        scores = logits[place].tolist()
        total = math.log(sum(math.exp(score - scores[label]) for score in scores))
        rank_at[place] = 1 + sum(score > scores[label] for score in scores)
        found["loss_sum"] += total
        found["num_slots"] += 1
        found["top1"] += rank_at[place] == 1
        found["top5"] += rank_at[place] <= 5
    words = []
    for place, token in enumerate(ids.tolist()):
        if token in vocabulary.special_ids:
            words.append([])
        elif starts[place] or not words or not words[-1]:
            words.append([place])
        else:
            words[-1].append(place)
    for word in filter(None, words):
        if starts[word[0]] and all(place in rank_at for place in word):
            found["num_words"] += 1
            found["words_right"] += all(rank_at[place] == 1 for place in word)
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counts_equal_naive_loops_over_rows_alone(model, shards, vocabulary, strategy):
    mask = MaskConfig(strategy=strategy, fraction=0.4)
    rows = np.array([3, 0, 10, 4, 7])
    counts = count(model, shards, rows, vocabulary=vocabulary, mask=mask, seed=5, batch_rows=2)
    assert list(dict.fromkeys(counts.rows)) == rows.tolist()
    assert counts.column("loss_sum").dtype == np.float64
    for row in rows:
        for name, expected in naive_row(model, shards, row, vocabulary, mask, 5).items():
            found = counts.column(name)[counts.rows == row].sum()
            assert found == pytest.approx(expected, rel=1e-5), name
    assert counts.column("num_words").sum() > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_that_knows_every_token_is_right_everywhere(shards, vocabulary, strategy):
    counts = count(
        Oracle(shards, vocabulary.size, wrong=()),
        shards,
        np.arange(11),
        vocabulary=vocabulary,
        mask=MaskConfig(strategy=strategy, fraction=0.3),
        batch_rows=11,
    )
    np.testing.assert_array_equal(counts.column("top1"), counts.column("num_slots"))
    np.testing.assert_array_equal(counts.column("words_right"), counts.column("num_words"))
    assert counts.column("loss_sum").max() < 1e-3


def test_one_wrong_token_spoils_its_word_and_no_other(shards, vocabulary):
    mask = MaskConfig(fraction=0.6)
    arguments = {"vocabulary": vocabulary, "mask": mask, "batch_rows": 11}
    right = count(Oracle(shards, vocabulary.size, wrong=()), shards, np.arange(11), **arguments)
    masked = mask_rows(
        shards.input_ids, shards.word_starts, np.arange(11), np.full(11, EVALUATION_EPOCH),
        seed=0, vocabulary=vocabulary, config=mask,
    )  # fmt: skip
    batch = Batch.of(masked)
    place = int(batch.slots[2, 1])
    spoilt = count(
        Oracle(shards, vocabulary.size, wrong=((2, place),)), shards, np.arange(11), **arguments
    )
    lost = (right.rows == 2).astype(int)
    np.testing.assert_array_equal(right.column("top1") - spoilt.column("top1"), lost)
    np.testing.assert_array_equal(right.column("words_right") - spoilt.column("words_right"), lost)
    np.testing.assert_array_equal(right.column("num_words"), spoilt.column("num_words"))
    np.testing.assert_array_equal(right.column("top5"), spoilt.column("top5"))


def test_ties_are_won_and_nan_loses(shards, vocabulary):
    oracle = Oracle(shards, vocabulary.size, wrong=())
    arguments = {"vocabulary": vocabulary, "mask": MaskConfig(), "batch_rows": 11}
    with torch.no_grad():
        oracle.scale.fill_(0)
    tied = count(oracle, shards, np.arange(11), **arguments)
    np.testing.assert_array_equal(tied.column("top1"), tied.column("num_slots"))
    np.testing.assert_allclose(
        tied.column("loss_sum"), tied.column("num_slots") * math.log(vocabulary.size), rtol=1e-6
    )
    with torch.no_grad():
        oracle.scale.fill_(float("nan"))
    broken = count(oracle, shards, np.arange(11), **arguments)
    assert broken.column("top5").sum() == broken.column("words_right").sum() == 0
    assert np.isnan(broken.column("loss_sum")[broken.column("num_slots") > 0]).all()


def test_shares_of_rows_add_up_to_the_whole(model, shards, vocabulary):
    arguments = {"vocabulary": vocabulary, "mask": MaskConfig(fraction=0.3), "seed": 2}
    whole = count(model, shards, np.arange(11), **arguments)
    shares = [count(model, shards, np.arange(11)[r::3], **arguments) for r in range(3)]
    np.testing.assert_allclose(sum(share.totals() for share in shares), whole.totals(), rtol=1e-6)


def test_what_two_documents_have_in_a_row_is_counted_apart(model, shards, vocabulary):
    arguments = {"vocabulary": vocabulary, "mask": MaskConfig(fraction=0.9), "seed": 2}
    counts = count(model, shards, np.array([8, 4, 10]), **arguments)
    assert counts.rows.tolist() == [8, 4, 4, 10]
    assert counts.documents.tolist() == [800, 400, 401, 1000]
    shards.input_ids[4, 10:-1] = shards.input_ids[4, -1]  # the second is of no token now
    shards.word_starts[4, 10:-1] = False
    first = count(model, shards, np.array([4]), **arguments)
    assert first.documents.tolist() == [400]
    whole = mask_rows(
        shards.input_ids[4:5], shards.word_starts[4:5], np.array([4]), np.array([EVALUATION_EPOCH]),
        seed=2, vocabulary=vocabulary, config=MaskConfig(fraction=0.9),
    )  # fmt: skip
    assert first.column("num_slots")[0] == (whole.labels >= 0).sum()


def test_masks_are_fixed_by_their_seed(model, shards, vocabulary):
    def loss(seed):
        mask = MaskConfig(fraction=0.3)
        rows = np.arange(11)
        counts = count(model, shards, rows, vocabulary=vocabulary, mask=mask, seed=seed)
        return counts.column("loss_sum")

    np.testing.assert_array_equal(loss(1), loss(1))
    assert (loss(1) != loss(2)).any()


def test_no_rows_count_nothing(model, shards, vocabulary):
    none = np.zeros(0, dtype=np.int64)
    counts = count(model, shards, none, vocabulary=vocabulary, mask=MaskConfig())
    assert len(counts.rows) == 0
    np.testing.assert_array_equal(counts.totals(), np.zeros((1, len(PLAIN))))


def test_a_row_of_special_tokens_counts_as_nothing(model, shards, vocabulary, tokenizer):
    shards.input_ids[6, 1:] = tokenizer.pad_token_id
    shards.word_starts[6] = False
    counts = count(model, shards, np.array([6]), vocabulary=vocabulary, mask=MaskConfig())
    np.testing.assert_array_equal(counts.totals(), np.zeros((1, len(PLAIN))))


def test_training_flags_come_back_one_by_one_and_dropout_is_off_meanwhile(
    model, shards, vocabulary
):
    arguments = {"vocabulary": vocabulary, "mask": MaskConfig(fraction=0.3)}
    quiet = count(model, shards, np.arange(11), **arguments)
    model.train()
    model.cls.eval()
    flags = [module.training for module in model.modules()]
    noisy = count(model, shards, np.arange(11), **arguments)
    assert [module.training for module in model.modules()] == flags
    np.testing.assert_array_equal(noisy.column("loss_sum"), quiet.column("loss_sum"))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_flags_come_back_after_an_error(model, shards, vocabulary):
    model.train()
    with pytest.raises(IndexError):
        count(model, shards, np.array([99]), vocabulary=vocabulary, mask=MaskConfig())
    assert model.training


def test_the_head_in_pieces_is_the_head_at_once(model, shards, vocabulary, monkeypatch):
    arguments = {"vocabulary": vocabulary, "mask": MaskConfig(fraction=0.3)}
    whole = count(model, shards, np.arange(11), **arguments)
    monkeypatch.setattr("fitb.evaluate.score._HEAD_POSITIONS", 7)
    pieces = count(model, shards, np.arange(11), **arguments)
    np.testing.assert_allclose(pieces.column("loss_sum"), whole.column("loss_sum"), rtol=1e-6)
    np.testing.assert_array_equal(pieces.column("top5"), whole.column("top5"))


def test_a_bfloat16_model_is_scored_in_float32(shards, vocabulary):
    oracle = Oracle(shards, vocabulary.size, wrong=())
    with torch.no_grad():
        oracle.scale.fill_(1.5)
    rows = np.arange(11)
    counts = count(
        oracle.bfloat16(), shards, rows, vocabulary=vocabulary, mask=MaskConfig(), batch_rows=11
    )
    expected = math.log(math.exp(1.5) + vocabulary.size - 1) - 1.5
    np.testing.assert_allclose(
        counts.column("loss_sum"), counts.column("num_slots") * expected, rtol=1e-6
    )


def test_what_is_left_of_a_cut_word_is_neither_masked_nor_counted(shards, vocabulary):
    shards.word_starts[7, 1:] = False
    shards.word_starts[7, 5] = True  # places 1 to 4 are the tail of a word
    oracle = Oracle(shards, vocabulary.size, wrong=())
    oracle.hidden = oracle.hidden[7:8]
    mask = MaskConfig(strategy="token", fraction=0.99)
    counts = count(oracle, shards, np.array([7]), vocabulary=vocabulary, mask=mask)
    assert counts.column("top1")[0] == counts.column("num_slots")[0] == LENGTH - 2 - 4
    assert counts.column("num_words")[0] == counts.column("words_right")[0] == 1


@pytest.mark.parametrize(("num_rows", "wanted"), [(10, 0), (10, 3), (10, 10), (3, 9), (0, 0)])
def test_chosen_rows_are_spread_evenly_and_never_twice(num_rows, wanted):
    rows = choose_rows(num_rows, wanted)
    assert len(rows) == min(wanted or num_rows, num_rows)
    assert len(set(rows.tolist())) == len(rows)
    assert all(0 <= row < num_rows for row in rows)
    if len(rows) > 2:
        assert np.diff(rows, n=2).max() <= 1


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="rows=-1"):
        EvaluateConfig(model="model", rows=-1)
    with pytest.raises(ConfigError, match="batch=0"):
        EvaluateConfig(model="model", batch=0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    draw = np.random.default_rng(0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "reading", "pages", "stories"]
    documents = [" ".join(draw.choice(words, 40)) + "." for _ in range(200)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    config = PrepareConfig(
        out=str(folder / "shards"),
        source="text",
        files=[str(folder / "text.txt")],
        vocab_size=300,
        length=32,
        validation_fraction=0.2,
        shard_mb=0.001,
        workers=1,
    )
    prepare(config)
    return folder / "shards"


@pytest.fixture
def fitting_folder(prepared, tmp_path):
    tokenizer = load_tokenizer(prepared / "tokenizer")
    small = Geometry(num_hidden_layers=1, hidden_size=12, intermediate_size=16)

    def make(kind=BertForMaskedLM):
        model = load_model(small, tokenizer=tokenizer, length=32).model
        (model if kind is BertForMaskedLM else model.bert).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return make


def test_evaluating_a_folder_says_all_that_its_numbers_depend_on(prepared, fitting_folder):
    config = EvaluateConfig(model=fitting_folder(), shards=str(prepared), rows=9, batch=4, seed=3)
    result = evaluate(config)
    assert json.loads(json.dumps(result)) == result
    shards = ShardSet.open(prepared, "validation")
    about = result["sets"]["validation"]
    assert about["fingerprint"] == shards.fingerprint
    assert result["mask"]["strategy"] == "whole_word"
    assert (result["seed"], about["num_rows"], about["split"]) == (3, 9, "validation")
    assert about["models"]["model"]["tokens_per_s"] > 0
    tokenizer = load_tokenizer(prepared / "tokenizer")
    model = BertForMaskedLM.from_pretrained(config.model)
    assert result["models"]["model"]["num_parameters"] == sum(p.numel() for p in model.parameters())
    counts = count(
        model,
        shards,
        choose_rows(shards.num_rows, 9),
        vocabulary=Vocabulary.of(tokenizer),
        mask=MaskConfig(),
        seed=3,
    )
    loss = result["metrics"]["loss"]
    assert loss["value"] == pytest.approx(
        counts.column("loss_sum").sum() / counts.column("num_slots").sum()
    )
    assert loss["low"] <= loss["value"] <= loss["high"]
    assert about["num_slots"] == counts.column("num_slots").sum()


def test_a_result_for_people_holds_metrics_masks_and_seed(prepared, fitting_folder):
    config = EvaluateConfig(model=fitting_folder(), shards=str(prepared), rows=3, seed=8)
    text = render(evaluate(config))
    for expected in ("span_em", "ppl", "whole_word", "15% of tokens", "seed 8", "3 rows", ".."):
        assert expected in text


def test_a_folder_without_head_is_refused_not_evaluated(prepared, fitting_folder):
    with pytest.raises(ContractError, match="lacks a trained MLM head"):
        evaluate(EvaluateConfig(model=fitting_folder(BertModel), shards=str(prepared)))


def test_a_model_of_another_tokenizer_is_refused(prepared, make_folder):
    with pytest.raises(ContractError, match="vocabulary"):
        evaluate(EvaluateConfig(model=make_folder(), shards=str(prepared)))
