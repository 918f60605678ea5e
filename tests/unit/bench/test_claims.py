"""The benchmarks of tests/benchmarks at sizes that take seconds, and what each claims."""

from __future__ import annotations

from pathlib import Path

import torch

from fitb.corpus.tokenizer import load_tokenizer
from fitb.infer.pytorch import TorchScorer
from fitb.model.load import load_model
from fitb.shards.shard_set import ShardSet
from tests.benchmarks import attention, blanks, duplicates
from tests.unit.conftest import tiny_config

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_memory_of_the_attention_term_grows_no_faster_than_length():
    """Bytes counted by the profiler, not by the machine: from 128 to 1,024 at most 8 times."""
    growth = attention.bench((128, 1024), rows=1, repeats=1)["memory_growth"]["128_to_1024"]
    assert growth["length"] == 8
    assert growth["fitb"] <= 8
    assert growth["plain"] > 30  # the L x L form, which shows that the count is able to see it


def test_near_duplicates_are_found_and_far_copies_stay(monkeypatch):
    lines = [line for path in DOCS.glob("*.md") for line in path.read_text().splitlines()]
    monkeypatch.setattr(duplicates, "pool", lambda: [line for line in lines if len(line) >= 20])
    assert duplicates.jaccard("a b c d e f", "A b, c d e g") == 1 / 3
    table = duplicates.bench(600, (0.8,))["thresholds"][0]
    assert table["recall"] >= 0.9 and table["precision"] >= 0.9
    by_similarity = {row["similarity"]: row for row in table["by_similarity"]}
    assert by_similarity["1"]["pairs"] == 60
    assert by_similarity["1"]["found"] == by_similarity["0.875 to 1"]["found"] == 1
    assert by_similarity["0 to 0.725"]["found"] == 0
    assert sum(row["pairs"] for row in table["by_similarity"]) == 600


def test_words_filled_exactly_are_those_of_naive_loops(shard_set, tmp_path):
    from transformers import BertForMaskedLM

    folder, tokenizer = str(tmp_path / "model"), load_tokenizer(shard_set / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertForMaskedLM(tiny_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    scorer = TorchScorer(load_model(folder, tokenizer=tokenizer).model, tokenizer)
    result = blanks.bench(folder, str(shard_set), (1, 2), words=30, beam=3)["pieces"]
    held_out = ShardSet.open(str(shard_set), "validation")
    for length in (1, 2):
        words = blanks.choose_words(held_out, scorer, length, 30, seed=0)
        row = result[str(length)]
        assert row["words"] == len(words) > 10
        assert row["exact"]["greedy"] * len(words) == sum(greedy(scorer, word) for word in words)
        lead = row["beam_alone_right"]["greedy"] - row["beam_alone_wrong"]["greedy"]
        assert round((row["exact"]["beam"] - row["exact"]["greedy"]) * len(words)) == lead
    assert result["1"]["exact"]["beam"] == result["1"]["exact"]["marginals"]


def greedy(scorer, word):
    """Whether a word is found by filling the slot of which the model is surest, again and again."""
    ids = torch.tensor([word.row])
    ids[0, word.begin : word.end] = scorer.tokenizer.mask_token_id
    still_open = list(range(word.begin, word.end))
    while still_open:
        with torch.no_grad():
            sure, token = scorer._model(input_ids=ids).logits[0].softmax(-1).max(-1)
        slot = max(still_open, key=lambda slot: float(sure[slot]))
        ids[0, slot] = token[slot]
        still_open.remove(slot)
    return tuple(ids[0, word.begin : word.end].tolist()) == word.tokens
