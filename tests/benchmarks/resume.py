"""Seconds from a signal to a committed checkpoint and from a start to the first step, with parts.

    python tests/benchmarks/resume.py --processes 4 --repeats 3 --ds_config zero1

A real training in several processes of this machine is told to leave and started again, in turn.
Times are those of its own events, against the moments of the signal and of the start.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from fitb.base import signals
from fitb.base.errors import RESUME, SystemFault
from fitb.base.fsio import read_lines, read_records
from fitb.bench.bench_config import BERT_BASE
from fitb.bench.text import shards_of_docstrings
from fitb.bench.timing import machine, spread
from fitb.cluster.local import LocalRun, train_command
from fitb.config import Config, DataConfig, EvalConfig, Geometry, ModelConfig, TrackConfig
from fitb.config.yaml import to_yaml

_VOCABULARY = 30_522
_PATIENCE_S = 600.0
_POLL_S = 0.01


def bench(
    precision: str = "bf16",
    length: int = 128,
    micro_batch: int = 4,
    processes: int = 2,
    repeats: int = 5,
    shards: str | None = None,
    ds_config: str = "zero2",
    teacher: Geometry = BERT_BASE,
    student: Geometry = Geometry(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Return medians over the turns of one run.

    Args:
        precision: as in training.
        length: tokens in a row.
        micro_batch: rows of a forward pass, and of a process in a step.
        processes: started on this machine.
        repeats: how often the training leaves and comes back.
        shards: a shard set of this length; null makes one of docstrings.
        ds_config: as in training.
        teacher: BERT-base with random weights, or another geometry.
        student: TinyBERT-4, or another geometry.
    """
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as name:
        folder = Path(name)
        shards = shards or str(shards_of_docstrings(folder, length, _VOCABULARY))
        run = Config(
            run_dir=str(folder / "run"),
            steps=10**6,
            precision=precision,  # type: ignore[arg-type]
            micro_batch=micro_batch,
            global_batch=micro_batch * processes,
            ds_config=ds_config,
            data=DataConfig(shards=shards),
            model=ModelConfig(teacher=teacher, student=student),
            eval=EvalConfig(every_steps=0),
            track=TrackConfig(every_steps=1, wandb="disabled"),
        )
        path = folder / "bench.yaml"
        path.write_text(to_yaml(run))
        command = train_command(["--config", str(path)])
        turns: list[dict[str, float]] = []
        with open(folder / "output", "w+b") as output:
            for _ in range(repeats + 1):  # the first start finds no checkpoint
                turns.append(_turn(command, processes, Path(run.run_dir), output))
        size = sum(file.stat().st_size for file in _newest(Path(run.run_dir)).iterdir())
    row: dict[str, Any] = {"bench": "resume", **machine(), "processes": processes}
    row |= {"precision": precision, "length": length, "ds_config": ds_config}
    row["checkpoint_mb"] = round(size / 1e6, 1)
    for name in turns[1]:
        row[name] = spread([turn[name] for turn in turns[1:]])
    return row


def _turn(command: list[str], processes: int, run: Path, output: Any) -> dict[str, float]:
    """Start, wait for two steps, signal, wait for the end; return seconds by part."""
    began = time.time()
    attempt = 1 + len(_events(run, "attempt"))
    with LocalRun(command, processes, output=output) as ranks:

        def wait(done: Callable[[], bool], what: str) -> None:
            while not done():
                if not ranks.running() or time.time() - began > _PATIENCE_S:
                    output.seek(0)
                    said = output.read().decode(errors="replace").splitlines()[-3:]
                    raise SystemFault(f"the training came to no {what}; its last words: {said}")
                time.sleep(_POLL_S)

        def first() -> list[dict[str, Any]]:
            return [e for e in _events(run, "first_step") if e["attempt"] == attempt]

        wait(lambda: bool(first()), "first step")
        step = first()[0]["step"]
        wait(lambda: _last_step(run) > step, "second step")
        signalled = time.time()
        ranks.signal(signals.PREEMPTION)
        code = ranks.wait(_PATIENCE_S)
        ended = time.time()
    if code != RESUME:
        raise SystemFault(f"the training left with {code} when it was told to; expected {RESUME}")
    entered, saved = _events(run, "attempt")[-1], _events(run, "save")[-1]
    stepped = first()[0]
    built = next((e for e in _events(run, "resume") if e["attempt"] == attempt), entered)
    committed = _when(saved)
    save_s = sum(saved["seconds"].values())
    return {
        "signal_to_committed_s": committed - signalled,
        "signal_to_committed.end_of_step_s": committed - save_s - signalled,
        "signal_to_committed.write_s": saved["seconds"]["write"],
        "signal_to_committed.commit_s": saved["seconds"]["commit"],
        "committed_to_end_s": ended - committed,
        "start_to_first_step_s": _when(stepped) - began,
        "start_to_first_step.imports_and_group_s": entered["age_s"],
        "start_to_first_step.models_and_checkpoint_s": built["age_s"] - entered["age_s"],
        "start_to_first_step.first_step_s": stepped["age_s"] - built["age_s"],
    }


def _events(run: Path, name: str) -> list[dict[str, Any]]:
    return [
        event for event in read_records(run / "events.jsonl", "event") if event["event"] == name
    ]


def _when(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _last_step(run: Path) -> int:
    return max(
        (record["train/step"] for record in read_lines(run / "metrics.jsonl", "train/step")),
        default=0,
    )


def _newest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()


if __name__ == "__main__":
    from command import print_json

    print_json(bench)
