"""The beam against brute force over all assignments, written without it."""

import functools
import itertools
import math

import pytest
import torch

from fitb.infer.blanks import Prepared, prepare
from fitb.infer.decode import decode
from fitb.infer.fill import fill
from fitb.infer.passes import PassLimits, drive
from fitb.infer.request import Constraint, FillRequest, Search, score_of
from tests.unit.infer.conftest import random_scorer

WIDE = 11**3


def log_probs(scorer, ids, slot):
    """log p of every token in one slot of one row, by transformers' own forward pass."""
    return _log_probs(scorer, tuple(ids))[slot]


@functools.lru_cache(maxsize=10_000)
def _log_probs(scorer, ids):
    with torch.no_grad():
        return scorer._model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).tolist()


def left_to_right(scorer, ids, slots, tokens):
    ids, total = list(ids), 0.0
    for slot, token in zip(slots, tokens, strict=True):
        total += log_probs(scorer, ids, slot)[token]
        ids[slot] = token
    return total


def all_by_confidence(scorer, ids, slots):
    """(tokens by slot) -> log-probability, over all assignments, the surest slot first."""
    if not slots:
        return {(): 0.0}
    asked = {slot: log_probs(scorer, ids, slot) for slot in slots}
    surest = max(slots, key=lambda slot: max(asked[slot]))
    rest = [slot for slot in slots if slot != surest]
    found = {}
    for token, value in enumerate(asked[surest]):
        after = [*ids[:surest], token, *ids[surest + 1 :]]
        for others, more in all_by_confidence(scorer, after, rest).items():
            tokens = dict(zip(rest, others, strict=True)) | {surest: token}
            found[tuple(tokens[slot] for slot in slots)] = value + more
    return found


def pseudo(scorer, ids, slots, tokens):
    """Every token given all others."""
    full = list(ids)
    for slot, token in zip(slots, tokens, strict=True):
        full[slot] = token
    mask = scorer.tokenizer.mask_token_id
    return sum(
        log_probs(scorer, [*full[:slot], mask, *full[slot + 1 :]], slot)[token]
        for slot, token in zip(slots, tokens, strict=True)
    )


def ids_of(scorer, *words):
    tokenizer = scorer.tokenizer
    return tokenizer.convert_tokens_to_ids(["[CLS]", *words, "[SEP]"])


def found_by(scorer, text, search, **more):
    (filled,) = fill(scorer, [FillRequest(text, search, **more)])
    return [
        (tuple(t for answer in filling.answers for t in answer.tokens), filling.log_probability)
        for filling in filled.fillings
    ]


def agree(found, expected, number=40):
    """The same assignments in the same order, and the same scores, where scores differ."""
    best = sorted(expected.values(), reverse=True)[:number]
    assert [value for _, value in found[:number]] == pytest.approx(best, abs=2e-5)
    for tokens, value in found[:number]:
        assert expected[tokens] == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", ["left_to_right", "confidence"])
def test_a_wide_beam_equals_brute_force(seed, order):
    scorer = random_scorer(seed=seed)
    ids, slots = ids_of(scorer, "a", "[MASK]", "b", "[MASK]", "[MASK]"), [2, 4, 5]
    expected = all_by_confidence(scorer, ids, slots)
    if order == "left_to_right":
        expected = {tokens: left_to_right(scorer, ids, slots, tokens) for tokens in expected}
    search = Search(order=order, beam=WIDE, top_k=WIDE)
    agree(found_by(scorer, "a [MASK] b [MASK] [MASK]", search), expected)


def test_a_wide_beam_with_refinement_equals_brute_force_over_pseudo_likelihoods(tiny):
    ids, slots = ids_of(tiny, "[MASK]", "[MASK]", "c", "."), [1, 2]
    expected = {
        tokens: pseudo(tiny, ids, slots, tokens)
        for tokens in itertools.product(range(11), repeat=2)
    }
    search = Search(order="refine", beam=121, top_k=121)
    agree(found_by(tiny, "[MASK] [MASK] c .", search), expected)


@pytest.mark.parametrize("seed", range(5))
def test_refinement_ends_where_no_single_change_helps(seed):
    scorer = random_scorer(seed=seed)
    ids, slots = ids_of(scorer, "a", "[MASK]", "[MASK]", "[MASK]"), [2, 3, 4]
    search = Search(order="refine", beam=2, top_k=1)
    ((tokens, value),) = found_by(scorer, "a [MASK] [MASK] [MASK]", search)
    assert value == pytest.approx(pseudo(scorer, ids, slots, tokens), abs=2e-5)
    start = found_by(scorer, "a [MASK] [MASK] [MASK]", Search(order="confidence", beam=2, top_k=1))
    assert value >= pseudo(scorer, ids, slots, start[0][0]) - 2e-5


def test_a_likely_word_outranks_an_unlikely_run_of_pieces():
    """Per piece, "ofss" of four pieces and 0.01 % stood before "value" of 3.4 %."""
    assert score_of(math.log(0.034), 1) > score_of(math.log(0.0001), 4)
    assert score_of(math.log(0.01), 2) > score_of(math.log(0.011), 1)  # yet a sum is no measure


def test_words_of_unknown_length_are_ranked_by_score(tiny):
    words, inner = (5, 6, 7), (8, 9)
    expected = {}
    for length in (1, 2, 3):
        ids = ids_of(tiny, "a", *["[MASK]"] * length, "b", ".")
        slots = list(range(2, 2 + length))
        for tokens in itertools.product(words, *[inner] * (length - 1)):
            expected[tokens] = left_to_right(tiny, ids, slots, tokens)
    found = found_by(tiny, "a ___ b .", Search("left_to_right", 100, 3, 100))
    assert dict(found) == pytest.approx(expected, abs=2e-5)
    scores = [value / len(tokens) ** 0.6 for tokens, value in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("order", ["left_to_right", "confidence"])
def test_blanks_with_the_same_answer_are_filled_together(tiny, order):
    ids = ids_of(tiny, "[MASK]", "b", "[MASK]", ".")
    first, second = log_probs(tiny, ids, 1), log_probs(tiny, ids, 3)
    expected = {(t, t): first[t] + second[t] for t in range(11)}
    search = Search(order=order, beam=11, top_k=11)
    agree(found_by(tiny, "[MASK] b [MASK] .", search, same=((0, 1),)), expected)


def test_candidates_are_scored_whole_whatever_their_length(tiny):
    text, candidates = "a [MASK] b", ("a", "cd", "b", "bed")
    found = found_by(
        tiny, text, Search("left_to_right", 1, top_k=9), constraints=(Constraint(candidates),)
    )
    tokenizer = tiny.tokenizer
    expected = {}
    for candidate in candidates:
        tokens = tokenizer(candidate, add_special_tokens=False)["input_ids"]
        ids = ids_of(tiny, "a", *["[MASK]"] * len(tokens), "b")
        slots = range(2, 2 + len(tokens))
        expected[tuple(tokens)] = left_to_right(tiny, ids, slots, tokens)
    assert {len(tokens) for tokens in expected} == {1, 2, 3}
    assert dict(found) == pytest.approx(expected, abs=2e-5)


def test_texts_of_all_kinds_mixed_are_filled_as_each_alone(tiny):
    requests = [
        FillRequest("a [MASK] b"),
        FillRequest("[MASK] [MASK] [MASK] c", Search(order="confidence")),
        FillRequest("a ___ . b b b b b [SPAN]", Search(beam=2, max_pieces=2)),
        FillRequest("___ a", Search(order="refine", max_pieces=2)),
        FillRequest("a [MASK]", constraints=(Constraint(("ad", "c")),)),
    ]
    together = fill(tiny, requests)
    for request, mixed in zip(requests, together, strict=True):
        (alone,) = fill(tiny, [request])
        assert [f.sentence for f in mixed.fillings] == [f.sentence for f in alone.fillings]
        assert [f.log_probability for f in mixed.fillings] == pytest.approx(
            [f.log_probability for f in alone.fillings], abs=2e-5
        )


def test_a_forward_pass_is_cut_into_parts_without_an_effect(tiny, monkeypatch):
    request = FillRequest("a [MASK] b [SPAN] c", Search(order="confidence", beam=20, top_k=9))
    (whole,) = fill(tiny, [request])
    for limits in (PassLimits(tokens=16), PassLimits(tokens=16, positions=1)):
        monkeypatch.setattr("fitb.infer.fill.PassLimits", lambda limits=limits: limits)
        (parts,) = fill(tiny, [request])
        assert [f.sentence for f in parts.fillings] == [f.sentence for f in whole.fillings]


def test_too_many_combinations_of_lengths_keep_the_likeliest_of_each_blank(tiny, monkeypatch):
    monkeypatch.setattr("fitb.infer.fill.MAX_LAYOUTS", 8)
    asked = []
    layout = Prepared.layout
    monkeypatch.setattr(Prepared, "layout", lambda self, p: (asked.append(p), layout(self, p))[1])
    request = FillRequest("a ___ b ___ c ___ .", Search("left_to_right", 3, 3, 1))
    fill(tiny, [request])
    trials, looked_at = asked[:9], asked[9:]
    assert {sum(pieces) for pieces in trials} == {3, 4, 5}
    prepared, limits = prepare(tiny.tokenizer, request, 64), PassLimits()

    def greedy_score(pieces):
        greedy = decode([layout(prepared, pieces)], 1, ["left_to_right"], limits)
        [[[found]]] = drive(tiny, [greedy], limits)
        return score_of(found.log_probability, sum(pieces))

    likeliest = []
    for place in range(3):
        by_length = [(1,) * place + (length,) + (1,) * (2 - place) for length in (1, 2, 3)]
        best = sorted(by_length, key=greedy_score)[-2:]
        likeliest.append(sorted(pieces[place] for pieces in best))
    assert looked_at == list(itertools.product(*likeliest))
