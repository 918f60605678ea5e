"""Rows longer than a model was trained at are read in windows, and shorter ones as before."""

import random
from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM

from fitb.infer.blanks import prepare
from fitb.infer.fill import fill
from fitb.infer.onnx import export_onnx
from fitb.infer.request import FillRequest, Search
from fitb.infer.scorer import load_scorer
from fitb.infer.windows import in_windows, windows_of

MOST = 16  # tokens that the models here were trained at; they have 64 positions
LEFT, RIGHT = random.Random(1).choices("abc", k=40), random.Random(2).choices("abc", k=40)


def test_every_position_lies_in_one_window_with_the_ends_of_the_row_around_it():
    draw = random.Random(5)
    for _ in range(800):
        most, length = draw.randint(3, 20), draw.randint(1, 90)
        positions = draw.choices(range(length), k=draw.randint(1, 12))
        row, found = list(range(1000, 1000 + length)), []
        for window in windows_of(length, positions, most):
            cut = window.cut(row)
            assert len(cut) == window.end - window.begin == min(length, most)
            assert (cut[0], cut[-1]) == (row[0], row[-1]) and window.begin >= 0
            assert cut[1:-1] == row[window.begin + 1 : window.end - 1]
            for number in window.numbers:
                assert cut[positions[number] - window.begin] == row[positions[number]]
            found += window.numbers
        assert sorted(found) == list(range(len(positions)))


@pytest.mark.parametrize("most", [5, 8, 16, 64])
def test_neighbours_that_fit_share_a_window_that_is_centred_on_them(most):
    for size in range(1, most - 1):
        run = list(range(200, 200 + size))
        (window,) = windows_of(500, run, most)
        left, right = run[0] - window.begin, window.end - 1 - run[-1]
        assert abs(left - right) <= 1
    assert len(windows_of(500, list(range(200, 200 + most - 1)), most)) == 2


def test_positions_far_from_each_other_have_windows_of_their_own():
    near, far = 100, 100 + MOST
    first, second = windows_of(500, [far, near, near + 1], MOST)
    assert (first.numbers, second.numbers) == ((1, 2), (0,))


def test_answers_come_back_in_the_order_in_which_they_were_asked():
    """A model that says which token it sees."""

    def tokens(rows, positions):
        return [row[at] for row, places in zip(rows, positions, strict=True) for at in places]

    def logits(rows, positions):
        assert max(map(len, rows)) <= 7
        return torch.tensor(tokens(rows, positions))

    draw = random.Random(3)
    for _ in range(300):
        rows = [
            [0, *draw.choices(range(10, 99), k=draw.randint(1, 40)), 1]
            for _ in range(draw.randint(1, 4))
        ]
        positions = [draw.choices(range(1, len(row) - 1), k=draw.randint(0, 6)) for row in rows]
        positions[0] = [1, *positions[0]]
        found = in_windows(logits, rows, positions, 7)
        assert found.tolist() == tokens(rows, positions)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_long_row_is_answered_as_its_windows_are(make_folder, tokenizer, backend):
    """Positions that no training reached were asked for: answers by chance."""
    folder = make_folder(trained_length=MOST)
    model = BertForMaskedLM.from_pretrained(folder).eval()
    if backend == "onnx":
        pytest.importorskip("onnxruntime")
        export_onnx(model, tokenizer, Path(folder))
    scorer, draw = load_scorer(folder, backend), random.Random(1)
    assert scorer.max_length == MOST

    def alone(rows, positions):
        with torch.inference_mode():
            answers = [model(torch.tensor([row])).logits[0] for row in rows]
        return torch.cat([each[at] for each, at in zip(answers, positions, strict=True)])

    for asked in ([30], [5, 6, 7], [3, 40, 20], [1, 48], [25, 25]):
        row = [2, *(draw.randrange(5, 200) for _ in range(48)), 3]
        both = [row, row[:9]], [asked, [4]]
        expected = in_windows(alone, *both, MOST)
        assert expected.abs().max() > 1  # an error of 1e-4 would be seen
        assert (scorer.logits(*both) - expected).abs().max() <= 1e-4


def test_rows_up_to_the_trained_length_are_answered_bitwise_as_without_it(tiny):
    asked = [[2, *[6, 8] * size, 3] for size in (7, 1, 4)], [[3, 1], [], [9]]
    free = tiny.logits(*asked)
    tiny.max_length = MOST
    assert torch.equal(tiny.logits(*asked), free)


@pytest.mark.parametrize("blank", ["[MASK]", "___"])
def test_a_long_text_is_filled_as_the_words_around_its_blank_alone(tiny, blank):
    tiny.max_length, search = MOST, Search(max_pieces=1, top_k=3)
    whole, around = fill(
        tiny,
        [
            FillRequest(" ".join([*LEFT[-before:], blank, *RIGHT[:after]]), search)
            for before, after in ((40, 40), (7, 6))
        ],
    )
    assert len(whole.fillings) == 3
    for one, other in zip(whole.fillings, around.fillings, strict=True):
        assert one.answers[0].text == other.answers[0].text
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)
        answer = one.answers[0]
        assert one.sentence[answer.begin : answer.end] == answer.text
        assert one.sentence.startswith(" ".join(LEFT)) and one.sentence.endswith(" ".join(RIGHT))


def test_the_work_of_a_long_text_is_that_of_its_windows(tiny):
    far = " ".join(["[MASK]", *LEFT, "[MASK] [MASK]", *RIGHT])
    for text, tokens in (
        ("a [MASK] b", 5),
        (far.removeprefix("[MASK]"), MOST),
        (far, 2 * MOST),
    ):
        assert prepare(tiny.tokenizer, FillRequest(text), MOST).num_tokens == tokens
    seen, original = [], tiny._logits
    tiny.max_length = MOST
    tiny._logits = lambda rows, at: (seen.append(sum(map(len, rows))), original(rows, at))[1]
    fill(tiny, [FillRequest(far, Search(beam=1, top_k=1))])
    assert seen[0] == 2 * MOST and max(seen) == seen[0]
