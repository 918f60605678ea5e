"""End-to-end demo on one machine: corpus, teacher, interrupted distillation, controls, a table.

It runs what a cluster runs: `fitb prepare`, and `fitb train` in several processes with DeepSpeed.
Finished parts are skipped, so an interrupted demo can be started again.
"""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fitb.base import fsio, signals
from fitb.base.errors import FINISHED, RESUME, ConfigError, TrainingError
from fitb.base.templates import render_template
from fitb.cluster.local import LocalRun, forwarding, train_command
from fitb.config import Config, MaskConfig, ObjectiveConfig
from fitb.config.parser import parse
from fitb.rundir import names
from fitb.rundir.events import num_attempts
from fitb.rundir.metrics import tail_records

logger = logging.getLogger(__name__)
_SPEED = "perf/tokens_per_s"
MODELS = ("teacher", "student", "control", "control_equal_compute", "untrained")
TEXTS = (
    "Returns a [MASK] of strings.",
    "Raises a [MASK] if the file does not exist.",
    "The default [MASK] is None.",
)


@dataclass(frozen=True)
class DemoConfig:
    """Distil a small teacher into a smaller student on this machine.

    Args:
        out: folder of the demo.
        processes: number of training processes.
        max_mb: size of the corpus of docstrings, MB.
        vocab_size: vocabulary size of the tokenizer.
        length: tokens per row.
        teacher_steps: optimiser steps of the teacher.
        steps: optimiser steps of the student, and of its control trained without a teacher.
        rows: validation rows to evaluate on; 0 means all.
    """

    out: str = "runs/demo"
    processes: int = 2
    max_mb: float = 14.0
    vocab_size: int = 4096
    length: int = 64
    teacher_steps: int = 2000
    steps: int = 1000
    rows: int = 0


def demo(config: DemoConfig) -> int:
    """Run the demo, print its table and write summary.json; return an exit code.

    Raises: ConfigError if summary.json exists and is not a demo's.
    """
    began_s = time.monotonic()
    out = Path(config.out)
    _check_summary(out / "summary.json")
    _prepare(config, out / "shards")
    logger.info("== train a teacher")
    _train(config, out / "teacher", ["--config", "demo-teacher"], config.teacher_steps)
    logger.info("== distil a smaller student from it, interrupt it, and resume")
    distil = ["--config", "demo", "--model.teacher", str(out / "teacher" / names.EXPORT)]
    _train(config, out / "student", distil, config.steps, interrupt_at=config.steps * 2 // 5)
    logger.info("== control: the same student without a teacher, for as many steps")
    alone = ["--config", "demo", "--model.teacher", "null"]
    _train(config, out / "control", alone, config.steps)
    ratio = _compute_ratio(out / "student")
    logger.info("== control: without a teacher, for the same compute (%.2f x the steps)", ratio)
    _train(config, out / "control_equal_compute", alone, round(config.steps * ratio))
    logger.info("== evaluate all of them on the same masked validation rows")
    models, differences = _measure(config, out)
    speeds = fsio.read_lines(out / "student" / names.METRICS, _SPEED)
    summary = {
        "models": models,
        "differences": differences,
        "attempts": num_attempts(out / "student"),
        "compute_ratio": ratio,
        "seconds": time.monotonic() - began_s,
        "tokens_per_s": statistics.median_high(record[_SPEED] for record in speeds),
        "settings": asdict(config),
    }
    fsio.write_json(out / "summary.json", summary)
    print(render_template("tools/demo.txt.j2", **summary), end="\n\n")
    _fill(out / "student" / names.EXPORT)
    print(f"\nAll of it is in {out}; the numbers are in {out / 'summary.json'}.")
    return 0


def _check_summary(summary: Path) -> None:
    """Refuse a summary.json that is not a demo's, because it would be replaced."""
    try:
        fsio.read_json(summary, "models", "compute_ratio")
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ConfigError(
            f"{summary} is not the summary of a demo; move it away, or name a new folder with --out"
        ) from error


def _prepare(config: DemoConfig, shards: Path) -> None:
    from fitb.corpus.prepare import prepare
    from fitb.corpus.prepare_config import PrepareConfig

    if (shards / "manifest.json").exists():
        return
    logger.info("== prepare shards from the docstrings of this machine's packages")
    prepare(
        PrepareConfig(
            out=str(shards),
            source="docstrings",
            max_mb=config.max_mb,
            vocab_size=config.vocab_size,
            length=config.length,
            validation_fraction=0.1,
        )
    )


def precision() -> str:
    """Return bf16 if this machine is faster with it, else fp32.

    On Intel's avx512_bf16 without AMX, MKL's fp32 is faster (docs/experiments.md).
    """
    import torch

    if torch.cuda.is_available():
        return "bf16"
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fast = "amx_bf16" in cpu or ("avx512_bf16" in cpu and "AuthenticAMD" in cpu)
    return "bf16" if fast else "fp32"


def _train(
    config: DemoConfig, run_dir: Path, flags: list[str], steps: int, interrupt_at: int = 0
) -> None:
    """Train in several processes until finished.

    Args:
        interrupt_at: step at which to send SIGUSR1 to one process, once; 0 for never.
    """
    flags = [
        *flags,
        *("--run_dir", str(run_dir), "--data.shards", f"{config.out}/shards"),
        *("--steps", str(steps), "--precision", precision()),
    ]
    while True:
        interrupted = False
        with LocalRun(train_command(flags), config.processes) as run, forwarding(run):
            if interrupt_at and num_attempts(run_dir) == 0:
                interrupted = _reaches_step(run, run_dir, interrupt_at)
            if interrupted:
                logger.info(
                    "== SIGUSR1 to one of %d processes, as a scheduler would", config.processes
                )
                run.signal(signals.TIME_LIMIT, rank=config.processes - 1)
            code = run.wait()
        if code == FINISHED:
            return
        if code == RESUME and interrupted:
            logger.info("== saved; the same command again")
        elif code == RESUME:
            raise TrainingError(f"{run_dir} was stopped and is saved; `fitb demo` resumes it")
        else:
            raise TrainingError(f"{run_dir} ended with exit code {code}; see its lines above")


def _reaches_step(run: LocalRun, run_dir: Path, step: int) -> bool:
    """Wait until a step is logged; False if the run ends before."""
    while run.running():
        if _last_step(run_dir) >= step:
            return True
        time.sleep(0.2)
    return False


def _last_step(run_dir: Path) -> int:
    records = tail_records(run_dir)
    return records[-1][names.STEP] if records else 0


def _compute_ratio(run_dir: Path) -> float:
    """Return the FLOPs of a distillation step divided by those of an MLM step."""
    config = parse(Config, "fitb demo", ["--config", str(run_dir / names.CONFIG)])
    alone = replace(config, model=replace(config.model, teacher=None, init="random"))
    alone = replace(alone, objective=ObjectiveConfig())
    return flops_of_step(config) / flops_of_step(alone)


def flops_of_step(config: Config) -> int:
    """Return the FLOPs of a step of a run, teacher included, as torch counts them on a CPU."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fitb.evaluation.count import masked_batch
    from fitb.evaluation.measure import EvaluationSet
    from fitb.model.load import load_model
    from fitb.objective.objective import Objective

    train = EvaluationSet.open("train", config.data.shards, "train")
    rows = np.arange(min(config.micro_batch, train.shards.num_rows))
    batch, _ = masked_batch(train.shards, rows, train.vocabulary, config.mask, seed=0)
    load = partial(load_model, tokenizer=train.tokenizer)

    student = load(config.model.student, length=train.shards.length).model
    teacher = load(config.model.teacher).model if config.model.teacher else None
    objective = Objective(student, teacher, config.objective)
    with FlopCounterMode(display=False) as counter:
        targets = None
        if teacher is not None and objective.asks_teacher:
            with torch.no_grad():
                targets = objective.teacher_tap(teacher)(batch)
        objective(batch, targets).sum().backward()
    return int(counter.get_total_flops()) * config.global_batch // len(rows)


def _measure(config: DemoConfig, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate all models on the same rows; "untrained" is the student before its first step.

    Returns: each model's metrics; the student's top-1 minus that of each other model, paired over
        documents.
    """
    from fitb.evaluation.count import choose_rows, count
    from fitb.evaluation.measure import EvaluationSet
    from fitb.evaluation.metrics import differences, summaries
    from fitb.model.load import load_model, num_parameters

    held_out = EvaluationSet.open("validation", str(out / "shards"), "validation")
    shards, vocabulary = held_out.shards, held_out.vocabulary
    rows = choose_rows(shards.num_rows, config.rows)
    student = parse(Config, "fitb demo", ["--config", str(out / "student" / names.CONFIG)])
    load = partial(
        load_model, tokenizer=held_out.tokenizer, length=shards.length, seed=student.seed
    )
    counts, models = {}, {}
    for name in MODELS:
        source = student.model.student if name == "untrained" else str(out / name / names.EXPORT)
        model = load(source).model
        began_s = time.monotonic()
        counts[name] = count(model, shards, rows, vocabulary=vocabulary, mask=MaskConfig())
        seconds = time.monotonic() - began_s
        intervals = summaries(counts[name])[0]
        models[name] = {
            "params": num_parameters(model),
            **{metric: interval.value for metric, interval in intervals.items()},
            "intervals": {m: [i.low, i.high] for m, i in intervals.items()},
            "tokens_per_s": len(rows) * shards.length / seconds,
            "steps": _last_step(out / name),
        }
    student_counts, apart = counts.pop("student"), {}
    for name, other in counts.items():
        top1 = differences(student_counts, other)[0]["top1"]
        apart[name] = {"top1": top1.value, "interval": [top1.low, top1.high]}
    return models, apart


def _fill(model: Path) -> None:
    from fitb.infer.fill import fill_from, render
    from fitb.infer.fill_config import FillConfig

    print(render(fill_from(FillConfig(model=str(model), texts=list(TEXTS), top_k=3))))
