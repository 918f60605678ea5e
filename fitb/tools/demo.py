"""End-to-end demo on one machine: corpus, teacher, interrupted distillation, controls, a table.

It runs what a cluster runs: `fitb prepare`, and `fitb train` in several processes with DeepSpeed.
Finished parts are skipped, so an interrupted demo can be started again.
"""

from __future__ import annotations

import logging
import math
import resource
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fitb.base import fsio, signals
from fitb.base.errors import FINISHED, RESUME, ConfigError, TrainingError
from fitb.base.templates import render_template
from fitb.cluster.local import LocalRun, forwarding, train_command
from fitb.config import Config, MaskConfig
from fitb.config.checks import check_range
from fitb.config.parser import parse
from fitb.rundir import names
from fitb.rundir.events import num_attempts, read_events
from fitb.rundir.history import attempts_of
from fitb.rundir.metrics import tail_records

logger = logging.getLogger(__name__)
_SPEED = "perf/tokens_per_s"
_MLM_ALONE = [f"--objective.{term}=0" for term in ("embedding", "hidden", "attention", "logits")]
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
        full: train for longer, with a second control of as many floating-point operations.
        teacher_steps: optimiser steps of the teacher; null: 750, or 2,000 with --full.
        steps: optimiser steps of the student and of its control; null: 200, or 1,000 with --full.
        rows: validation rows to evaluate on; 0 means all.
    """

    out: str = "runs/demo"
    processes: int = 2
    max_mb: float = 14.0
    vocab_size: int = 4096
    length: int = 64
    full: bool = False
    teacher_steps: int | None = None
    steps: int | None = None
    rows: int = 2000

    def __post_init__(self) -> None:
        check_range("", self, "processes", "teacher_steps", low=1)
        check_range("", self, "steps", low=5)  # room for an interruption
        check_range("", self, "rows", low=0)


def demo(config: DemoConfig) -> int:
    """Run the demo, print its table and write summary.json; return an exit code.

    Raises: ConfigError if the folder holds something else, or a demo of other settings.
    """
    out, steps = Path(config.out), config.steps or (1000 if config.full else 200)
    done = _Done.of(out, config)
    with done.stage("shards", "prepare shards from the docstrings of this machine's packages"):
        _prepare(config, out / "shards")
    teacher_steps = config.teacher_steps or (2000 if config.full else 750)
    with done.stage("teacher", "train a teacher"):
        _train(config, out / "teacher", ["--config", "demo-teacher"], teacher_steps)
    same = ["--config", "demo", "--model.teacher", str(out / "teacher" / names.EXPORT)]
    same += ["--optim.warmup_steps", str(steps // 10)]
    with done.stage("student", "distil a smaller student, interrupt it, and resume"):
        _train(config, out / "student", same, steps, interrupt_at=steps * 2 // 5)
    alone = [*same, *_MLM_ALONE]
    with done.stage("control", "control: the same start, then MLM alone, as many steps"):
        _train(config, out / "control", alone, steps)
    ratio = _compute_ratio(out / "student", out / "control")
    if config.full:
        longer = round(steps * ratio)
        title = f"control: the same start, then MLM alone, as much compute: {longer} steps"
        with done.stage("control_equal_compute", title):
            _train(config, out / "control_equal_compute", alone, longer)
    with done.stage("evaluation", "evaluate all of them on the same masked validation rows"):
        models, differences = _measure(config, out)
    speeds = fsio.read_lines(out / "student" / names.METRICS, _SPEED)
    of_teacher = models["teacher"]["top1"] or math.nan
    summary = {
        "models": models,
        "differences": differences,
        "retention": models["student"]["top1"] / of_teacher,
        "attempts": num_attempts(out / "student"),
        "compute_ratio": ratio,
        "seconds": sum(done.seconds.values()),
        "stages": done.seconds,
        "peak_memory_gb": _peak_memory_gb(),
        "tokens_per_s": statistics.median_high(record[_SPEED] for record in speeds),
        "settings": asdict(config),
    }
    fsio.write_json(out / "summary.json", fsio.finite(summary))
    print(render_template("tools/demo.txt.j2", **summary), end="\n\n")
    _fill(out / "student" / names.EXPORT)
    print(f"\nAll of it is in {out}; the numbers are in {out / 'summary.json'}.")
    return 0


@dataclass(frozen=True)
class _Done:
    """What a demo has done so far, over all its starts: OUT/demo.json.

    Args:
        path: the file.
        settings: settings that its runs depend on.
        seconds: time of each stage, summed over the starts.
        finished: stages that are not timed again.
    """

    path: Path
    settings: dict[str, Any]
    seconds: dict[str, float]
    finished: list[str]

    @classmethod
    def of(cls, out: Path, config: DemoConfig) -> _Done:
        """Read what an earlier start has done, and refuse a folder of anything else."""
        path, settings = out / "demo.json", asdict(config)
        for name in ("out", "rows", "processes"):  # may change
            del settings[name]
        other = f"name a new folder: fitb demo --out {out}-2{' --full' * config.full}"
        try:
            found = fsio.read_json(path, "settings", "seconds", "finished")
        except FileNotFoundError:
            ours = ("shards", "teacher", "student", "control", "summary.json")
            if there := [str(out / name) for name in ours if (out / name).exists()]:
                raise ConfigError(
                    f"{', '.join(there)} not of this demo, which has a demo.json; move it away, or"
                    f" {other}"
                ) from None
            out.mkdir(parents=True, exist_ok=True)
            return cls(path, settings, {}, [])
        except ValueError as error:
            raise ConfigError(f"{path} is not of a demo; move it away, or {other}") from error
        theirs = found["settings"]
        if changed := [f"{k}={theirs.get(k)}" for k, v in settings.items() if theirs.get(k) != v]:
            raise ConfigError(f"{out} holds a demo with {', '.join(changed)}; {other}")
        return cls(path, settings, found["seconds"], found["finished"])

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Name a part of the demo in the log, time it, and remember that it is finished."""
        logger.info("== %s", title)
        if name in self.finished:
            yield
            return
        began_s = time.monotonic()
        try:
            yield
            self.finished.append(name)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began_s
            about = {"settings": self.settings, "seconds": self.seconds}
            fsio.write_json(self.path, {**about, "finished": self.finished})


def _peak_memory_gb() -> float:
    """Return the most resident memory that one process of the demo had, in GB (1e9)."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(each).ru_maxrss for each in who) * 1024 / 1e9


def _prepare(config: DemoConfig, shards: Path) -> None:
    from fitb.corpus.prepare import prepare
    from fitb.corpus.prepare_config import PrepareConfig

    if (shards / "manifest.json").exists():
        return
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
        *("--steps", str(steps)),
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
        if code == RESUME and interrupted and _last_reason(run_dir) == "SIGUSR1":
            logger.info("== saved; the same command again")
        elif code in (RESUME, 128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise TrainingError(f"{run_dir} was stopped; start the same command again to go on")
        else:
            raise TrainingError(f"{run_dir} ended with exit code {code}; see its lines above")


def _last_reason(run_dir: Path) -> str | None:
    return attempts_of(read_events(run_dir))[-1].reason


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


def _compute_ratio(student: Path, control: Path) -> float:
    """Return the FLOPs of a distillation step divided by those of a step of the control."""
    runs = (["--config", str(run / names.CONFIG)] for run in (student, control))
    ours, alone = (flops_of_step(parse(Config, "fitb demo", flags)) for flags in runs)
    return ours / alone


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
    rows = np.arange(min(config.rows_per_pass, train.shards.num_rows))
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
    from fitb.model.from_teacher import take_weights
    from fitb.model.layer_map import resolve
    from fitb.model.load import load_model, num_parameters

    held_out = EvaluationSet.open("validation", str(out / "shards"), "validation")
    shards, vocabulary = held_out.shards, held_out.vocabulary
    rows = choose_rows(shards.num_rows, config.rows)
    student = parse(Config, "fitb demo", ["--config", str(out / "student" / names.CONFIG)])
    load = partial(
        load_model, tokenizer=held_out.tokenizer, length=shards.length, seed=student.seed
    )
    trained = ["teacher", "student", "control", *(["control_equal_compute"] * config.full)]
    loaded = {name: load(str(out / name / names.EXPORT)).model for name in trained}
    loaded["untrained"] = untrained = load(student.model.student).model
    if student.model.init == "teacher":
        ours, theirs = (m.config.num_hidden_layers for m in (untrained, loaded["teacher"]))
        take_weights(untrained, loaded["teacher"], resolve(student.model.init_layers, ours, theirs))
    counts, models = {}, {}
    for name, model in loaded.items():
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
