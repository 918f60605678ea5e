import itertools
import random
import re

import pytest
from transformers import pipeline

from fitb.base.errors import ConfigError, DataError
from fitb.infer.fill import FillConfig, as_json, fill, render
from fitb.infer.request import Answer, Constraint, Filled, Filling, FillRequest, Search
from fitb.infer.scorer import load_scorer
from tests.unit.infer.conftest import Watched

SINGLE = [
    "The quick brown [MASK] jumps.",
    "[MASK]",
    "She was thinking of the capital of [MASK] and of its rivers, again and again!",
    "Zebra caf\u00e9 \U0001f642 [MASK]",
]
FEW = Search(beam=8, top_k=8, max_pieces=3)


@pytest.fixture
def scorer(make_folder):
    return load_scorer(make_folder())


def ask(scorer, texts, **search):
    return fill(scorer, [FillRequest(text, Search(**search)) for text in texts])


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


def test_a_piece_that_continues_a_word_joins_what_is_before_it(tiny):
    (found,) = ask(tiny, ["B [MASK] c"], top_k=11)
    written = {f.sentence: f.answers[0].text for f in found.fillings}
    assert (written["Bd c"], written["B a c"]) == ("d", "a")
    assert "##d" in render([found])


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
    ask(watched, ["the " * draw.randint(1, 60) + "[MASK]" for _ in range(300)], beam=1, top_k=1)
    assert sum(map(len, watched.passes)) == 300
    for rows in watched.passes:
        shortest, *_, longest = sorted(map(len, rows))
        assert longest * len(rows) <= 1024 or longest <= 1.1 * shortest


def test_a_text_without_blank_is_named_by_number_not_by_content(scorer):
    with pytest.raises(DataError, match=r"text 3: .*___") as caught:
        ask(scorer, ["a [MASK]", "a [MASK]", "my secret"])
    assert "secret" not in str(caught.value)


def test_what_takes_more_tokens_than_a_row_may_have_is_left_out_or_refused(scorer, monkeypatch):
    monkeypatch.setattr("fitb.infer.blanks.MAX_TOKENS", 100)
    (found,) = ask(scorer, ["a " * 96 + "___"], max_pieces=4, beam=50, top_k=50)
    assert {len(f.answers[0].tokens) for f in found.fillings} == {1, 2}
    with pytest.raises(DataError, match=r"text 2: .* 101 tokens, at most 100; shorten .* 64"):
        ask(scorer, ["[MASK]", "a " * 98 + "[MASK]"])


def test_answers_that_the_model_cannot_read_at_once_are_left_out_or_refused(tiny):
    tiny.max_length = 5
    (found,) = fill(tiny, [FillRequest("a a a a ___ a a", Search(max_pieces=9, top_k=99))])
    assert max(len(filling.answers[0].tokens) for filling in found.fillings) == 3
    long = Constraint(candidates=("addeedde",))
    with pytest.raises(DataError, match=r"blanks \[0\] has 8 .* 3 at once"):
        fill(tiny, [FillRequest("a ___", constraints=(long,))])


@pytest.mark.parametrize("name", ["top_k", "beam", "max_pieces"])
def test_a_search_refuses_less_than_one(name):
    for make in (Search, FillConfig):
        with pytest.raises(ConfigError, match=f"{name}=0"):
            make(**{name: 0})


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


def constrained(scorer, text, *constraints, search=FEW, **more):
    (found,) = fill(scorer, [FillRequest(text, search, constraints, **more)])
    return {tuple(answer.text for answer in filling.answers) for filling in found.fillings}


@pytest.mark.parametrize("order", ["left_to_right", "confidence", "refine"])
@pytest.mark.parametrize(
    ("constraint", "allows"),
    [
        (Constraint(regex="c(d|e)+"), lambda text: re.fullmatch("c[de]+", text)),
        (Constraint(prefix="Bed"), lambda text: text.startswith("bed")),
        (
            Constraint(banned=("B", "cd", "a.")),
            lambda text: text != "a." and {"b", "cd"}.isdisjoint(re.findall(r"\w+", text)),
        ),
    ],
    ids=["regex", "prefix", "banned"],
)
def test_the_answers_are_those_that_meet_the_constraint_in_every_order(
    tiny, order, constraint, allows
):
    wide, greedy = Search(order, 300, 3, 300), Search(order, 1, 3, 1)
    possible = constrained(tiny, "a [SPAN] b", search=wide)
    found = constrained(tiny, "a [SPAN] b", constraint, search=wide)
    assert found == {(text,) for (text,) in possible if allows(text)}
    assert set() < constrained(tiny, "a [SPAN] b", constraint, search=greedy) <= found


def test_a_word_is_one_word_and_a_span_may_be_several(tiny):
    search = Search(beam=200, max_pieces=2, top_k=200)
    words, spans = (constrained(tiny, f"a {blank}", search=search) for blank in ("___", "[SPAN]"))
    assert words == {(x + y,) for x, y in itertools.product("abc", ("", "d", "e"))}
    assert words | {("a b",), ("a.",), (".",)} <= spans


def test_a_blank_within_a_word_is_filled_with_pieces_that_continue_it(tiny):
    (found,) = fill(tiny, [FillRequest("b___ c", Search(beam=9, top_k=9, max_pieces=2))])
    assert {f.sentence for f in found.fillings} == {
        "bd c", "be c", "bdd c", "bde c", "bed c", "bee c",
    }  # fmt: skip
    inside = constrained(tiny, "b___ c", Constraint(candidates=("ed", "d")))
    assert inside == {("ed",), ("d",)}


def test_each_blank_may_have_its_own_constraint(tiny):
    found = constrained(tiny, "___ and ___", Constraint(("a", "b")), Constraint(regex="c.*"))
    assert {first for first, _ in found} == {"a", "b"}
    assert all(second.startswith("c") for _, second in found)


def test_the_same_answer_stands_in_all_blanks_of_a_group(tiny):
    found = constrained(tiny, "___ b ___ c [MASK]", same=((0, 1),))
    assert found
    assert all(first.lower() == second.lower() for first, second, _ in found)


@pytest.mark.parametrize(
    ("constraints", "same", "said"),
    [
        ([Constraint(), Constraint(), Constraint()], (), "3 constraints for 2 blanks"),
        ([Constraint(regex="(")], (), "regex"),
        ([Constraint(candidates=("",))], (), "candidate 1 "),
        ([Constraint(candidates=("\u6211",))], (), "candidate 1 "),
        ([], ((0, 5),), r"same=\[\[0, 5\]\]"),
        ([Constraint(("a",)), Constraint(("cd",))], ((0, 1),), r"blanks \[0, 1\]"),
    ],
)
def test_constraints_that_cannot_be_are_refused(tiny, constraints, same, said):
    with pytest.raises(ConfigError, match=said):
        constrained(tiny, "___ ___", *constraints, same=same)
