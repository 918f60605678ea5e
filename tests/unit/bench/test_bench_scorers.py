"""The comparison of scorers times what it says, turn by turn."""

from __future__ import annotations

from fitb.bench import scorers, timing
from fitb.config import Geometry

MASK = 4  # the id
SMALL = Geometry(num_hidden_layers=1, hidden_size=24, intermediate_size=32, num_attention_heads=3)
BOTH = {"student": SMALL, "teacher": SMALL}


class Slow:
    """A scorer whose calls move a clock of the test on, whatever is asked."""

    def __init__(self, cost_s, calls):
        self.cost_s, self.calls = cost_s, calls

    def logits(self, rows, positions):
        assert all(row[place] == MASK for row, (place,) in zip(rows, positions, strict=True))
        self.calls.append((self.cost_s, len(rows)))


def test_ratios_are_slower_over_faster_on_the_same_rows(monkeypatch, tokenizer):
    assert tokenizer.mask_token_id == MASK
    calls = []

    def seconds(work, _device):
        before = len(calls)
        work()
        return sum(cost for cost, _ in calls[before:])

    exported = {"onnx": Slow(2, calls), "int8": Slow(1, calls)}
    rest = iter((Slow(4, calls), Slow(16, calls)))
    monkeypatch.setattr(scorers, "_onnx_scorers", lambda *_: exported)
    monkeypatch.setattr(scorers, "torch_scorer", lambda *_: next(rest))
    monkeypatch.setattr(timing, "seconds", seconds)
    found = scorers.compare_scorers(BOTH, tokenizer, [[2, MASK, 3]] * 8, [1, 4], repeats=2)
    alone, together = found["logits_batch_1"], found["logits_batch_4"]
    assert {name: value["median"] for name, value in alone.items()} == {
        "onnx_ms": 2000,
        "int8_ms": 1000,
        "student_ms": 4000,
        "teacher_ms": 16000,
        "student_over_teacher": 4,
        "onnx_over_torch": 2,
        "int8_over_torch": 4,
    }
    assert together["student_ms"]["median"] == 1000  # of a row, four of them in a call
    assert alone["student_over_teacher"]["runs"] == 2
    assert "teacher_ms" not in together and "student_over_teacher" not in together
    assert {size for _, size in calls} == {1, 4}


def test_without_onnxruntime_the_rest_is_still_measured(monkeypatch, tokenizer):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = scorers.compare_scorers(BOTH, tokenizer, [[2, MASK, 3]], [1], repeats=1)
    assert set(found["logits_batch_1"]) == {"student_ms", "teacher_ms", "student_over_teacher"}
