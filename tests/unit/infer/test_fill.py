import itertools
import random
import re

import pytest
import torch
from transformers import BertModel, pipeline

from fitb.base.errors import ConfigError, ContractError, DataError
from fitb.infer.fill import FillConfig, as_json, fill, render
from fitb.infer.pytorch import TorchScorer
from fitb.infer.request import Answer, Constraint, Filled, Filling, FillRequest, Search
from fitb.infer.scorer import load_scorer
from fitb.model.load import load_model
from tests.unit.infer.conftest import Watched

SINGLE = [
    "The quick brown [MASK] jumps.",
    "[MASK]",
    "She was thinking of the capital of [MASK] and of its rivers, again and again!",
    "Zebra caf\u00e9 \U0001f642 [MASK]",
]


@pytest.fixture
def scorer(make_folder, tokenizer):
    return TorchScorer(load_model(make_folder(), tokenizer=tokenizer).model, tokenizer)


def ask(scorer, texts, **search):
    return fill(scorer, [FillRequest(text, Search(**search)) for text in texts])


def forced(scorer, *pieces):
    """Make the head prefer these pieces, in this order, everywhere."""
    model, tokenizer = scorer._model, scorer.tokenizer
    with torch.no_grad():
        model.cls.predictions.transform.dense.weight.zero_()
        model.cls.predictions.bias.zero_()
        for order, piece in enumerate(pieces):
            model.cls.predictions.bias[tokenizer.convert_tokens_to_ids(piece)] = 1e4 - 100 * order
    return scorer


def test_single_blanks_score_as_the_transformers_pipeline(scorer):
    reference = pipeline("fill-mask", model=scorer._model, tokenizer=scorer.tokenizer)
    for text, found in zip(SINGLE, ask(scorer, SINGLE, top_k=7), strict=True):
        expected = reference(text, top_k=7)
        assert [f.answers[0].tokens for f in found.fillings] == [(e["token"],) for e in expected]
        assert [f.answers[0].pieces for f in found.fillings] == [
            (e["token_str"],) for e in expected
        ]
        assert [f.probability for f in found.fillings] == pytest.approx(
            [e["score"] for e in expected], abs=1e-5
        )


def test_a_joint_probability_is_the_product_of_its_pieces(scorer):
    (found,) = ask(scorer, ["the [MASK] and [MASK] ___"], order="confidence")
    for filling in found.fillings:
        parts = [answer.log_probability for answer in filling.answers]
        assert sum(parts) == pytest.approx(filling.log_probability, abs=1e-6)
        pieces = sum(len(answer.tokens) for answer in filling.answers)
        assert filling.score == pytest.approx(filling.log_probability / pieces**0.6)


def test_a_piece_that_continues_a_word_joins_what_is_before_it(scorer):
    (found,) = ask(forced(scorer, "##s", "the"), ["Walk [MASK] home"], top_k=2)
    assert [f.sentence for f in found.fillings] == ["Walks home", "Walk the home"]
    assert [f.answers[0].text for f in found.fillings] == ["s", "the"]
    assert "##s" in render([found])


def test_a_special_token_in_a_text_is_text(scorer):
    watched, tokenizer = Watched(scorer), scorer.tokenizer
    ask(watched, ["a [SEP] b [CLS] [MASK] [PAD] [sep]"])
    ((ids,),) = watched.passes
    special = {token: ids.count(token) for token in tokenizer.all_special_ids}
    assert special[tokenizer.sep_token_id] == special[tokenizer.cls_token_id] == 1
    assert special[tokenizer.mask_token_id] == 1
    assert special[tokenizer.pad_token_id] == 0


def test_a_pass_of_many_rows_is_hardly_padded(scorer):
    assert fill(scorer, []) == []
    draw, watched = random.Random(1), Watched(scorer)
    texts = ["the " * draw.randint(1, 60) + "[MASK]" for _ in range(300)]
    together = ask(watched, texts, beam=1, top_k=1)
    assert sum(map(len, watched.passes)) == len(texts)
    for rows in watched.passes:
        shortest, *_, longest = sorted(map(len, rows))
        assert longest * len(rows) <= 1024 or longest <= 1.1 * shortest
    for number in draw.sample(range(300), 12):
        (alone,) = ask(scorer, texts[number : number + 1], beam=1, top_k=1)
        assert alone.fillings[0].sentence == together[number].fillings[0].sentence


def test_a_text_without_blank_is_named_by_number_not_by_content(scorer):
    with pytest.raises(DataError, match=r"text 3: the text has no blank; write ___") as caught:
        ask(scorer, ["a [MASK]", "a [MASK]", "my secret"])
    assert "secret" not in str(caught.value)


def test_a_text_of_more_tokens_than_are_taken_is_refused_with_what_to_do(scorer, monkeypatch):
    monkeypatch.setattr("fitb.infer.blanks.MAX_TOKENS", 100)
    fits = "a " * 97 + "[MASK]"
    assert len(ask(scorer, [fits])) == 1
    with pytest.raises(DataError, match=r"text 2: .* 101 tokens, at most 100; shorten .* 64"):
        ask(scorer, ["[MASK]", "a " + fits])


def test_lengths_with_which_a_row_is_too_long_are_left_out(scorer, monkeypatch):
    monkeypatch.setattr("fitb.infer.blanks.MAX_TOKENS", 100)
    (found,) = ask(scorer, ["a " * 96 + "___"], max_pieces=4, beam=50, top_k=50)
    assert {len(f.answers[0].tokens) for f in found.fillings} == {1, 2}


def test_answers_that_the_model_cannot_read_at_once_are_left_out_or_refused(tiny):
    tiny.max_length = 5
    (found,) = fill(tiny, [FillRequest("a a a a ___ a a", Search(max_pieces=9, top_k=99))])
    assert max(len(filling.answers[0].tokens) for filling in found.fillings) == 3
    long = Constraint(candidates=("addeedde",))
    with pytest.raises(DataError, match=r"blanks \[0\] has 8 .* 3 at once; .* shorter"):
        fill(tiny, [FillRequest("a ___", constraints=(long,))])


@pytest.mark.parametrize("name", ["top_k", "beam", "max_pieces"])
def test_a_search_refuses_less_than_one(name):
    for make in (Search, FillConfig):
        with pytest.raises(ConfigError, match=f"{name}=0"):
            make(**{name: 0})


def test_a_folder_without_head_is_refused(make_folder):
    with pytest.raises(ContractError, match="lacks a trained MLM head"):
        load_scorer(make_folder(kind=BertModel))


def test_flags_say_what_is_asked_of_each_blank():
    config = FillConfig(candidates=["a", "b"], prefix="x", same=[[1, 2]], beam=3)
    request = config.request("___ ___")
    assert request.constraints == (Constraint(("a", "b"), prefix="x"),)
    assert (request.same, request.search.beam) == (((0, 1),), 3)
    with pytest.raises(ConfigError, match="--blanks"):
        FillConfig(prefix="x", blanks=[Constraint()])
    with pytest.raises(ConfigError, match=r"same=\[\[0, 1\]\]"):
        FillConfig(same=[[0, 1]])


def test_results_render_for_people_and_machines():
    fox = Answer("fox", 2, 5, (7,), ("fox",), -1.0)
    tail = Answer("s", 5, 6, (9,), ("##s",), -2.0)
    both = Filling("a foxs", (fox, tail), -3.0, -1.5)
    filled = [Filled("a [MASK][MASK]", (), (both,)), Filled("x ___", (), ())]
    assert render(filled).splitlines() == [
        "a foxs",
        "    4.98%  fox / ##s",
        "",
        "no answer meets the constraints",
    ]
    first, second = as_json(filled)
    assert first["fillings"][0]["probability"] == pytest.approx(0.0498, abs=1e-4)
    assert first["fillings"][0]["answers"][1]["probability"] == pytest.approx(0.1353, abs=1e-4)
    assert second["fillings"] == ()


def constrained(scorer, text, *constraints, **more):
    request = FillRequest(text, Search(beam=8, top_k=8, max_pieces=3), constraints, **more)
    (found,) = fill(scorer, [request])
    return [tuple(answer.text for answer in filling.answers) for filling in found.fillings]


@pytest.mark.parametrize("order", ["left_to_right", "confidence", "refine"])
def test_answers_meet_a_regex_in_every_order(tiny, order):
    request = FillRequest("a [SPAN] b", Search(order, 30, 3, 30), (Constraint(regex="c(d|e)+"),))
    (found,) = fill(tiny, [request])
    texts = {filling.answers[0].text for filling in found.fillings}
    assert texts == {"cd", "ce", "cdd", "cde", "ced", "cee"}


def test_answers_begin_with_a_prefix_in_the_case_of_the_vocabulary(tiny):
    found = constrained(tiny, "a ___ b", Constraint(prefix="Be"))
    assert found
    assert all(text.startswith("be") for (text,) in found)


def test_banned_words_are_in_no_answer(tiny):
    banned = Constraint(banned=("B", "cd"))
    request = FillRequest("a [SPAN] a", Search(beam=300, max_pieces=2, top_k=300), (banned,))
    (found,) = fill(tiny, [request])
    texts = [filling.answers[0].text for filling in found.fillings]
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    assert {"a", "c", "bd", "ce"} <= words
    assert not {"b", "cd"} & words


def test_a_word_is_one_word_and_a_span_may_be_several(tiny):
    search = Search(beam=200, max_pieces=2, top_k=200)
    words, spans = fill(tiny, [FillRequest("a ___", search), FillRequest("a [SPAN]", search)])
    of_words = {filling.answers[0].text for filling in words.fillings}
    of_spans = {filling.answers[0].text for filling in spans.fillings}
    assert of_words == {"a", "b", "c", *(x + y for x, y in itertools.product("abc", "de"))}
    assert of_words < of_spans
    assert {"a b", "a.", "."} <= of_spans


def test_a_blank_within_a_word_is_filled_with_pieces_that_continue_it(tiny):
    (found,) = fill(tiny, [FillRequest("b___ c", Search(beam=9, top_k=9, max_pieces=2))])
    assert {f.sentence for f in found.fillings} == {
        "bd c", "be c", "bdd c", "bde c", "bed c", "bee c",
    }  # fmt: skip
    inside = constrained(tiny, "b___ c", Constraint(candidates=("ed", "d")))
    assert set(inside) == {("ed",), ("d",)}


def test_each_blank_may_have_its_own_constraint(tiny):
    found = constrained(tiny, "___ and ___", Constraint(("a", "b")), Constraint(regex="c.*"))
    assert {first for first, _ in found} == {"a", "b"}
    assert all(second.startswith("c") for _, second in found)


def test_the_same_answer_stands_in_all_blanks_of_a_group(tiny):
    found = constrained(tiny, "___ b ___ c [MASK]", same=((0, 1),))
    assert found
    assert all(first.lower() == second.lower() for first, second, _ in found)


@pytest.mark.parametrize(
    ("constraints", "more", "message"),
    [
        ((Constraint(), Constraint(), Constraint()), {}, "3 constraints for 2 blanks"),
        ((Constraint(regex="(")), {}, "regex does not compile"),
        ((Constraint(candidates=("",))), {}, "candidate 1 is empty"),
        ((Constraint(candidates=("\u6211",))), {}, "candidate 1 "),
        ((), {"same": ((0, 5),)}, r"same=\[\[0, 5\]\]; expected"),
        ((Constraint(("a",)), Constraint(("cd",))), {"same": ((0, 1),)}, "have the same answer"),
    ],
)
def test_constraints_that_cannot_be_are_refused(tiny, constraints, more, message):
    given = (constraints,) if isinstance(constraints, Constraint) else constraints
    with pytest.raises(ConfigError, match=message):
        fill(tiny, [FillRequest("___ ___", constraints=given, **more)])
