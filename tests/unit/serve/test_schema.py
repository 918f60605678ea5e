"""Requests within and beyond their limits, and answers held against their own schema."""

import json
import random

import pytest

pytest.importorskip("fastapi")
from fastapi import HTTPException
from pydantic import ValidationError

from fitb.base.errors import ConfigError
from fitb.infer.blanks import prepare
from fitb.infer.fill import fill
from fitb.infer.request import Constraint, FillRequest, Search
from fitb.serve import schema
from fitb.serve.request_limits import Limits
from fitb.serve.serve_config import ServeConfig
from fitb.serve.worker import work_tokens
from tests.unit.infer.conftest import Watched, random_scorer

LIMITS = Limits(texts=3, chars=60, blanks=2, beam=4, max_pieces=3, top_k=6, candidates=2)
MODEL = schema.request_model(LIMITS, ["student", "teacher"])
SECRET = "zebracrossing"


def read(body, limits=LIMITS):
    model = MODEL if limits is LIMITS else schema.request_model(limits, ["student"])
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return schema.read_request(model, encoded, limits)


def refusal(body, limits=LIMITS):
    with pytest.raises(HTTPException) as refused:
        read(body, limits)
    return refused.value


def test_a_string_is_a_text_of_which_nothing_more_is_asked():
    default = FillRequest("a ___", Search(beam=4, max_pieces=3, top_k=5))
    assert read({"texts": ["a ___"]}) == ("student", [default])
    assert read({"texts": [{"text": "a ___"}], "model": "teacher"}) == ("teacher", [default])


def test_every_field_arrives():
    text = {
        "text": "a ___ b ___",
        "search": {"order": "refine", "beam": 2, "max_pieces": 1, "top_k": 6},
        "constraints": [
            {"candidates": ["x", "y"], "regex": "x|y"},
            {"prefix": "y", "banned": ["z"]},
        ],
        "same": [[0, 1]],
    }
    expected = FillRequest(
        "a ___ b ___",
        Search("refine", 2, 1, 6),
        (Constraint(("x", "y"), "x|y"), Constraint(prefix="y", banned=("z",))),
        ((0, 1),),
    )
    assert read({"texts": [text]})[1] == [expected]


def test_the_examples_are_valid():
    _, requests = read(schema.EXAMPLE, Limits())
    assert len(requests) == 2 and requests[1].search.order == "confidence"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"texts": ["a \xff ___"]}', b'{"texts": ["\\ud800 ___"]}', b"\x00"],
)
def test_what_is_not_json_in_utf8_is_400(body):
    assert refusal(body).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        [],
        None,
        {},
        {"texts": []},
        {"texts": "a ___"},
        {"texts": ["a ___"] * 4},
        {"texts": ["a ___" * 20]},
        {"texts": ["___ ___ ___"]},
        {"texts": [""]},
        {"texts": [3]},
        {"texts": ["a ___"], "model": "other"},
        {"texts": ["a ___"], "unknown": 1},
        {"texts": [{"text": "a ___", "search": {"beam": 5}}]},
        {"texts": [{"text": "a ___", "search": {"beam": 0}}]},
        {"texts": [{"text": "a ___", "search": {"beam": True}}]},
        {"texts": [{"text": "a ___", "search": {"top_k": "5"}}]},
        {"texts": [{"text": "a ___", "search": {"order": "random"}}]},
        {"texts": [{"text": "a ___", "constraints": [{"candidates": ["a", "b", "c"]}]}]},
        {"texts": [{"text": "a ___", "constraints": [{"regex": "a" * 201}]}]},
        {"texts": [{"text": "a ___", "same": [[2]]}]},
        {"texts": [{"text": "a ___", "same": [[-1]]}]},
    ],
)
def test_what_breaks_a_limit_is_422(body):
    assert refusal(body).status_code == 422


@pytest.mark.parametrize(
    "constraints",
    [
        [{"candidates": ["a", "b"]}, {"candidates": ["c"]}],
        [{"banned": ["a"]}, {"banned": ["c", "d"]}],
        [{"candidates": ["a" * 31]}, {"prefix": "b" * 30}],
    ],
)
def test_the_constraints_of_a_text_count_together(constraints):
    refused = refusal({"texts": ["a ___", {"text": "a ___ b ___", "constraints": constraints}]})
    assert refused.status_code == 422 and refused.detail.startswith("texts[1] has ")


def test_an_answer_that_would_be_too_long_is_refused_beforehand():
    limits = Limits(answer_chars=5000)
    assert read({"texts": ["a ___"] * 64}, limits)
    long = {"text": "a ___" + " " * 100, "search": {"top_k": 50}}
    assert "top_k" in refusal({"texts": [long]}, limits).detail


KEYS = {f"k{number}": 0 for number in range(50_000)}


@pytest.mark.parametrize(
    "body",
    [
        {"texts": ["a ___"], **KEYS},
        {"texts": [{"text": "a ___", **KEYS}]},
        {"texts": [{"text": "a ___", "search": KEYS}]},
        {"texts": [{"text": "a ___", "constraints": [KEYS]}]},
        {"texts": [0] * 50_000},
        {"texts": [{"text": "a", "constraints": [{"candidates": [0] * 1000}] * 16}] * 3},
        {"texts": [{"text": "a", "same": [["a"] * 16] * 16}] * 64},
    ],
)
def test_a_body_of_many_faults_is_refused_for_the_first_few_of_them(body):
    """An error for each of 80,000 unknown keys kept the event loop for seconds."""
    with pytest.raises(ValidationError) as found:
        schema.request_model(Limits(), ["student"]).model_validate_json(json.dumps(body))
    assert found.value.error_count() < 40
    refused = refusal(body, Limits())
    assert refused.status_code == 422 and len(refused.detail) < 1000


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("texts[1].search.beam: ", {"text": f"{SECRET} ___", "search": {"beam": SECRET}}),
        ("texts[1]", f"{SECRET} ___" * 20),
    ],
)
def test_a_reason_names_the_place_and_not_what_stands_there(place, text):
    refused = refusal({"texts": ["a ___", text]})
    assert refused.detail.startswith(place) and SECRET not in refused.detail


def test_an_answer_is_what_its_schema_says_with_offsets_in_code_points():
    texts = ["\U0001f600 na\u00efve ___ b [SPAN] \U0001f600.", "a [MASK]"]
    filled = fill(random_scorer(), [FillRequest(text) for text in texts])
    answer = json.loads(schema.response("student", [schema.encoded(one) for one in filled]))
    checked = schema.Response.model_validate(answer, strict=True)
    assert checked.model_dump() == answer
    places = [
        [text[blank["begin"] : blank["end"]] for blank in found["blanks"]]
        for text, found in zip(texts, answer["texts"], strict=True)
    ]
    assert places == [["___", "[SPAN]"], ["[MASK]"]]
    for filling in [filling for found in answer["texts"] for filling in found["fillings"]]:
        for one in filling["answers"]:
            assert filling["sentence"][one["begin"] : one["end"]] == one["text"]


def test_filling_a_text_takes_no_more_tokens_than_were_counted_before():
    draw, scorer = random.Random(5), random_scorer()
    for number in range(25):
        words = draw.choices(["a", "b", "___", "[MASK]", "[SPAN]", "c"], k=draw.randint(2, 7))
        search = Search(
            draw.choice(["left_to_right", "confidence"]),
            beam=draw.randint(1, 4),
            max_pieces=draw.randint(1, 3),
            top_k=draw.randint(1, 6),
        )
        blanks = sum(word[0] in "_[" for word in words)
        given = () if number % 3 or not blanks else (Constraint(candidates=("a", "bed c")),)
        if not 1 <= blanks <= 3 or (given and "[MASK]" in words):
            continue
        request, watched = FillRequest(" ".join(words), search, given), Watched(scorer)
        fill(watched, [request])
        tokens = sum(len(row) for rows in watched.passes for row in rows)
        assert 0 < tokens <= work_tokens(prepare(scorer.tokenizer, request, 64)), words


@pytest.mark.parametrize(
    "changes",
    [
        {"port": -1},
        {"port": 65_536},
        {"threads": -1},
        {"max_queue": 0},
        {"deadline_s": 0.0},
        {"max_batch_texts": 0},
        {"max_queue": 10},  # a request of 64 texts would never fit
    ],
)
def test_numbers_out_of_their_range_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        ServeConfig("model", **changes)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("me", False)],
)
def test_only_loopback_is_local(host, local):
    assert ServeConfig("model", host=host).is_local is local
