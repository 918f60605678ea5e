"""Time of the logits at one masked position: student, teacher, onnxruntime and int8."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fitb.bench.timing import in_turns, ratios, spread
from fitb.config import Geometry
from fitb.infer.pytorch import torch_scorer
from fitb.infer.scorer import Scorer
from fitb.model.load import load_model

_RATIOS = {  # JSON key: scorers whose times are divided
    "student_over_teacher": ("teacher", "student"),
    "onnx_over_torch": ("student", "onnx"),
    "int8_over_torch": ("student", "int8"),
}


def compare_scorers(
    geometries: Mapping[str, Geometry],
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    batches: Sequence[int],
    repeats: int,
) -> dict[str, Any]:
    """Time every scorer on the same rows in turn, without tokenisation; weights are random.

    Args:
        geometries: sizes of `student` and `teacher`; onnx and int8 are exports of the student.
        tokenizer: fast tokenizer; its size is the vocabulary size of the models.
        rows: token ids, one [MASK] in each row.
        batches: rows per call; the teacher is timed only at batch size 1.
        repeats: counted turns, after one that warms up.
    Returns: for each batch size the spread of milliseconds per row of each scorer and of the ratios
        between them; without onnxruntime its scorers are left out.
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
        for begin in range(0, most, batch):
            scorer.logits(rows[begin : begin + batch], slots[begin : begin + batch])

    return run


def _measured(
    runs: Mapping[str, Callable[[int], None]], num_rows: int, repeats: int
) -> dict[str, Any]:
    times = in_turns(runs, num_rows, repeats)
    found: dict[str, Any] = {
        f"{name}_ms": spread([1000 * value / num_rows for value in values])
        for name, values in times.items()
    }
    for name, (slower, faster) in _RATIOS.items():
        if slower in times and faster in times:
            found[name] = ratios(times[slower], times[faster])
    return found
