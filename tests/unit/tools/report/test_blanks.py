"""The best and the worst blanks against a loop over rows and words."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from fitb.config import MaskConfig
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.masking import Vocabulary, mask_rows
from fitb.evaluation.count import EVALUATION_EPOCH
from fitb.shards.shard_set import ShardSet
from fitb.tools.report.blanks import AROUND, blanks_of
from fitb.tools.report.gather import RunData


@pytest.fixture
def run(shard_set, make_folder, tmp_path):
    """A run whose export is a random model with strong opinions."""
    tokenizer = load_tokenizer(shard_set / "tokenizer")
    folder = make_folder("run/export", with_tokenizer=False, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return RunData(tmp_path / "run", "run", config={"data.shards": str(shard_set)})


def naive(run):
    """(row, word) -> its loss, its probability, the likeliest answer: one word after the other."""
    shards = ShardSet.open(run.config["data.shards"], "validation")
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    model = BertForMaskedLM.from_pretrained(run.path / "export").eval()

    def text(ids):
        return "".join(piece.removeprefix("##") for piece in tokenizer.convert_ids_to_tokens(ids))

    found = {}
    for row in range(shards.num_rows):
        number = np.array([row])
        read = shards.read(number)
        masked = mask_rows(
            read.input_ids, read.word_starts, number, np.array([EVALUATION_EPOCH]), seed=0,
            vocabulary=Vocabulary.of(tokenizer), config=MaskConfig(),
        )  # fmt: skip
        with torch.no_grad():
            logits = model(*map(torch.tensor, (masked.input_ids, masked.attention_mask))).logits[0]
        chances = logits.double().softmax(-1)
        ids, starts = read.input_ids[0], read.word_starts[0]
        borders = np.flatnonzero(starts | np.isin(ids, tokenizer.all_special_ids))
        for begin, end in itertools.pairwise([*borders, len(ids)]):
            its = np.arange(begin, end)
            hidden = (masked.input_ids[0, its] == tokenizer.mask_token_id).all()
            if starts[begin] and hidden and any(c.isalpha() for c in text(ids[its])):
                right, given = chances[its, ids[its]], text(chances[its].argmax(-1))
                found[row, text(ids[its])] = -right.log().mean(), right.prod(), given
    return found


def test_blanks_are_those_that_a_loop_finds_best_and_worst(run):
    expected = naive(run)
    blanks = blanks_of(run, 4, 0)
    assert not blanks.skipped and len(blanks.best) == len(blanks.worst) == 4
    for those, order in ((blanks.best, 1), (blanks.worst, -1)):
        ranked = sorted(expected.items(), key=lambda item: order * item[1][0])
        words = list(dict.fromkeys(word for (_, word), _ in ranked))[:4]
        assert [blank.truth for blank in those] == words
        for blank in those:
            loss, probability, given = expected[blank.row, blank.truth]
            assert blank.loss == pytest.approx(loss.item(), rel=1e-4)
            assert blank.truth_probability == pytest.approx(probability.item(), rel=1e-3)
            assert re.sub("^##| ##", "", blank.given) == given
            assert 0 < blank.given_probability <= 1
            assert len(blank.before) <= AROUND and len(blank.after) <= AROUND
            around = {text for text, _ in (*blank.before, *blank.after)}
            assert not around & {"[CLS]", "[SEP]", "[MASK]", "[PAD]"}
    assert any(hidden for blank in blanks.best for _, hidden in (*blank.before, *blank.after))


def test_fewer_rows_are_spread_over_the_split(run):
    elsewhere = RunData(run.path, "x", config={"data.shards": "nowhere"})
    found = blanks_of(elsewhere, 50, 3, run.config["data.shards"])
    rows = {blank.row for blank in found.best}
    assert rows
    num_rows = ShardSet.open(run.config["data.shards"], "validation").num_rows
    assert rows <= {i * num_rows // 3 for i in range(3)}


def test_an_export_of_another_vocabulary_fills_no_blanks(run):
    """Of equal size: its answers would be the words of other ids."""
    path = run.path / "export" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    ids = {word: number for word, number in vocabulary.items() if word[0] != "["}
    vocabulary.update(zip(ids, reversed(ids.values()), strict=True))
    path.write_text(json.dumps(content))
    assert "ContractError" in blanks_of(run, 2, 8).skipped


def test_blanks_that_cannot_be_had_are_said_in_a_sentence(run, tmp_path):
    def said(path, shards, number=2):
        blanks = blanks_of(RunData(path, "x", config={"data.shards": shards}), number, 8)
        assert not blanks.best and not blanks.worst
        return blanks.skipped

    assert "--blanks 0" in said(run.path, run.config["data.shards"], number=0)
    assert "no export" in said(tmp_path / "none", run.config["data.shards"])
    for where in ("s3://bucket/shards", str(tmp_path), None):
        assert "there are no shards" in said(run.path, where)
    assert "s3://***@bucket" in said(run.path, "s3://key:secret@bucket")
    (tmp_path / "manifest.json").write_text("{")
    assert "DataError" in said(run.path, str(tmp_path))
