"""Logits at one slot of a sentence, by who computes them: student, teacher, onnxruntime, 8 bits."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fitb.bench.timing import Spread, seconds
from fitb.config import Geometry
from fitb.infer.pytorch import torch_scorer
from fitb.infer.scorer import Scorer
from fitb.model.load import load_model

_RATIOS = {  # name of the row: slower over faster, in seconds
    "student_over_teacher": ("teacher", "student"),
    "onnx_over_torch": ("student", "onnx"),
    "int8_over_torch": ("student", "int8"),
}
_WARM_UP_ROWS = 3


def compare_scorers(
    geometries: Mapping[str, Geometry],
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    batches: Sequence[int],
    repeats: int,
) -> dict[str, Any]:
    """Time every scorer on the same rows in turn, tokenising left out; weights are random.

    Args:
        geometries: of `student` and `teacher`; onnx and int8 are the student.
        rows: token ids, one [MASK] in each.
        batches: rows per call; the teacher is timed with one alone.
        repeats: turns; one before them is not counted.
    Returns: by batch milliseconds per row of each, and of its rivals the ratio of each turn; what
        needs onnxruntime is left out where it is not installed.
    """
    slots = [[list(row).index(tokenizer.mask_token_id)] for row in rows]
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as folder:
        scorers = _onnx_scorers(geometries["student"], tokenizer, Path(folder))
    for name, geometry in geometries.items():
        scorers[name] = torch_scorer(load_model(geometry, tokenizer=tokenizer).model, tokenizer)
    found = {}
    for batch in batches:
        names = [name for name in scorers if name != "teacher" or batch == 1]
        runs = {name: _run(scorers[name], rows, slots, batch) for name in names}
        found[f"logits_batch_{batch}"] = _measured(runs, len(rows), repeats)
    return found


def _onnx_scorers(geometry: Geometry, tokenizer: Any, folder: Path) -> dict[str, Scorer]:
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
        return {}
    from fitb.infer.onnx import FP32, INT8, OnnxScorer, export_onnx, quantise

    model = load_model(geometry, tokenizer=tokenizer).model
    tokenizer.save_pretrained(folder)
    export_onnx(model, tokenizer, folder)
    quantise(folder)
    most = model.config.max_position_embeddings
    return {
        name: OnnxScorer(folder / file, tokenizer, most)
        for name, file in (("onnx", FP32), ("int8", INT8))
    }


def _run(
    scorer: Scorer, rows: Sequence[Sequence[int]], slots: Sequence[Sequence[int]], batch: int
) -> Callable[[int], None]:
    def run(most: int) -> None:
        for begin in range(0, min(most, len(rows)), batch):
            scorer.logits(rows[begin : begin + batch], slots[begin : begin + batch])

    return run


def _measured(
    runs: Mapping[str, Callable[[int], None]], num_rows: int, repeats: int
) -> dict[str, Any]:
    """Every turn times each once, in an order that turns round with them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in list(runs.items())[:: -1 if turn % 2 else 1]:
            run(_WARM_UP_ROWS)  # caches and threads of the one before are not its own
            elapsed_s = seconds(partial(run, num_rows))
            if turn:
                times[name].append(elapsed_s)
    found: dict[str, Any] = {
        f"{name}_ms": asdict(Spread.of([1000 * value / num_rows for value in values]))
        for name, values in times.items()
    }
    for name, (slower, faster) in _RATIOS.items():
        if slower in times and faster in times:
            pairs = zip(times[slower], times[faster], strict=True)
            found[name] = asdict(Spread.of([above / below for above, below in pairs]))
    return found
