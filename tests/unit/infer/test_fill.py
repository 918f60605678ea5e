import re

import pytest
import torch
from transformers import BertForMaskedLM, BertModel, pipeline

from fitb.errors import ConfigError, ContractError, DataError
from fitb.infer.fill import Candidate, FillConfig, Filled, as_json, fill, fill_from, render
from fitb.model.load import load_model

SINGLE = [
    "The quick brown [MASK] jumps.",
    "[MASK]",
    "She was thinking of the capital of [MASK] and of its rivers, again and again!",
    "Zebra caf\u00e9 \U0001f642 [MASK]",
]


@pytest.fixture
def model(make_folder, tokenizer):
    return load_model(make_folder(), tokenizer=tokenizer).model


def forced(model, tokenizer, *pieces):
    """Make the head prefer these pieces, in this order, everywhere."""
    with torch.no_grad():
        model.cls.predictions.transform.dense.weight.zero_()
        model.cls.predictions.bias.zero_()
        for order, piece in enumerate(pieces):
            model.cls.predictions.bias[tokenizer.convert_tokens_to_ids(piece)] = 1e4 - 100 * order
    return model


def test_single_blanks_score_as_the_transformers_pipeline(model, tokenizer):
    reference = pipeline("fill-mask", model=model, tokenizer=tokenizer)
    for text, found in zip(SINGLE, fill(model, tokenizer, SINGLE, top_k=7), strict=True):
        (candidates,) = found.blanks
        expected = reference(text, top_k=7)
        assert [c.token for c in candidates] == [e["token"] for e in expected]
        assert [c.text for c in candidates] == [e["token_str"] for e in expected]
        assert [c.probability for c in candidates] == pytest.approx(
            [e["score"] for e in expected], abs=1e-5
        )


def test_several_blanks_score_as_the_transformers_pipeline(model, tokenizer):
    text = "The [MASK] dog [MASK] over [MASK]."
    (found,) = fill(model, tokenizer, [text], top_k=3)
    expected = pipeline("fill-mask", model=model, tokenizer=tokenizer)(text, top_k=3)
    assert len(found.blanks) == 3
    for candidates, blank in zip(found.blanks, expected, strict=True):
        assert [c.token for c in candidates] == [e["token"] for e in blank]
        assert [c.probability for c in candidates] == pytest.approx(
            [e["score"] for e in blank], abs=1e-5
        )


def test_texts_do_not_see_each_other(model, tokenizer):
    texts = [*SINGLE, "the [MASK] [MASK] fox"]
    together = fill(model, tokenizer, texts, top_k=4)
    in_batches = fill(model, tokenizer, texts, top_k=4, batch=2)
    for text, first, second in zip(texts, together, in_batches, strict=True):
        (alone,) = fill(model, tokenizer, [text], top_k=4)
        for other in (first, second):
            assert other.sentence == alone.sentence
            for candidates, expected in zip(other.blanks, alone.blanks, strict=True):
                assert [c.token for c in candidates] == [c.token for c in expected]
                assert [c.probability for c in candidates] == pytest.approx(
                    [c.probability for c in expected], abs=1e-5
                )


def test_candidates_fall_in_probability_and_the_whole_vocabulary_sums_to_one(model, tokenizer):
    (found,) = fill(model, tokenizer, ["the [MASK]"], top_k=len(tokenizer))
    probabilities = [c.probability for c in found.blanks[0]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_a_sentence_keeps_the_text_around_its_blanks_as_written(model, tokenizer):
    best = forced(model, tokenizer, "the")
    texts = ["  Caf\u00e9 [MASK]  DOG\u2014[MASK]! ", "[MASK]"]
    sentences = [found.sentence for found in fill(best, tokenizer, texts)]
    assert sentences == ["  Caf\u00e9 the  DOG\u2014the! ", "the"]


def test_a_piece_that_continues_a_word_joins_what_is_before_it(model, tokenizer):
    best = forced(model, tokenizer, "##s", "the")
    (found,) = fill(best, tokenizer, ["Walk [MASK] home"], top_k=2)
    assert found.sentence == "Walks home"
    assert [c.text for c in found.blanks[0]] == ["##s", "the"]


def test_no_texts_give_nothing(model, tokenizer):
    assert fill(model, tokenizer, []) == []


def test_a_text_without_blank_is_named_by_number_not_by_content(model, tokenizer):
    texts = ["a [MASK]", "a [MASK]", "my secret"]
    for batch in (1, 2, 3):
        with pytest.raises(DataError, match=r"text 3 has no blank; write \[MASK\]") as caught:
            fill(model, tokenizer, texts, batch=batch)
        assert "secret" not in str(caught.value)


def test_a_text_longer_than_the_model_is_refused(model, tokenizer):
    most = model.config.max_position_embeddings
    fits = "a " * (most - 3) + "[MASK]"
    assert len(fill(model, tokenizer, [fits])) == 1
    with pytest.raises(DataError, match=f"text 2 has {most + 1} tokens, .* at most {most}"):
        fill(model, tokenizer, ["[MASK]", "a " + fits])


@pytest.mark.parametrize("top_k", [0, -1, 10**6])
def test_top_k_outside_the_vocabulary_is_refused(model, tokenizer, top_k):
    with pytest.raises(ConfigError, match=f"top_k={top_k}"):
        fill(model, tokenizer, ["[MASK]"], top_k=top_k)


def test_a_configuration_refuses_top_k_below_one():
    with pytest.raises(ConfigError, match="top_k=0"):
        FillConfig("model", ["[MASK]"], top_k=0)
    assert FillConfig("model").top_k == 5


def test_a_folder_is_all_that_filling_needs(make_folder, tokenizer):
    folder = make_folder()
    found = fill_from(FillConfig(folder, ["the [MASK] dog"], top_k=2))
    model = BertForMaskedLM.from_pretrained(folder)
    assert found == fill(model, tokenizer, ["the [MASK] dog"], top_k=2)


def test_a_folder_without_head_is_refused(make_folder):
    with pytest.raises(ContractError, match="lacks a trained MLM head"):
        fill_from(FillConfig(make_folder(kind=BertModel), ["[MASK]"]))


def test_results_render_for_people_and_machines():
    one = Candidate(7, "fox", 0.25)
    two = Candidate(9, "##s", 0.0101)
    filled = [Filled("a [MASK]", ((one, two),), "a fox"), Filled("x", ((one,), (two,)), "y")]
    assert render(filled).splitlines() == [
        "a fox",
        "   25.00%  fox",
        "    1.01%  ##s",
        "",
        "y",
        "  blank 1",
        "   25.00%  fox",
        "  blank 2",
        "    1.01%  ##s",
    ]
    assert as_json(filled)[0]["blanks"][0][1] == {"token": 9, "text": "##s", "probability": 0.0101}
    assert not re.search(r"[ \n]$", render(filled))
