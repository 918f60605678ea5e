"""End-to-end demo on one machine: corpus, teacher, interrupted distillation, controls, a table.

It runs what a cluster runs: `fitb prepare`, and `fitb train` in several processes under DeepSpeed.
Finished parts are skipped, so an interrupted demo can be started again.
"""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitb.base import fsio, signals
from fitb.base.errors import FINISHED, RESUME, ConfigError, TrainingError
from fitb.base.templates import render_template
from fitb.cluster.local import LocalRun, forwarding, train_command
from fitb.config import Config, MaskConfig
from fitb.config.parser import parse
from fitb.rundir.events import num_attempts

if TYPE_CHECKING:
    from fitb.evaluation.counts import RowCounts

logger = logging.getLogger(__name__)
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
        processes: training processes.
        max_mb: megabytes of docstrings.
        vocab_size: of the tokenizer.
        length: tokens in a row.
        teacher_steps: steps of the teacher.
        steps: steps of the student, and of the control of equal steps.
        rows: validation rows in the table; 0 means all.
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

    Raises: ConfigError where summary.json is another's.
    """
    began_s = time.monotonic()
    out = Path(config.out)
    _refuse_other(out / "summary.json")
    _prepare(config, out / "shards")
    _say("a teacher learns to fill blanks")
    _train(config, out / "teacher", ["--config", "demo-teacher"], config.teacher_steps)
    _say("a smaller student learns from it, is interrupted, and carries on")
    distil = ["--config", "demo", "--model.teacher", str(out / "teacher" / "export")]
    _train(config, out / "student", distil, config.steps, interrupt_at=config.steps * 2 // 5)
    _say("control: the same student without a teacher, for as many steps")
    alone = ["--config", "demo", "--model.teacher", "null"]
    _train(config, out / "control", alone, config.steps)
    ratio = _compute_ratio(out / "student")
    more_steps = round(config.steps * ratio)
    _say(f"control: without a teacher, for the same compute ({ratio:.2f} x the steps)")
    _train(config, out / "control_equal_compute", alone, more_steps)
    _say("all of them on the same masked validation rows")
    counts, models = _measure(config, out)
    summary = {
        "models": models,
        "differences": _differences(counts),
        "attempts": num_attempts(out / "student"),
        "compute_ratio": ratio,
        "seconds": time.monotonic() - began_s,
        "tokens_per_s": statistics.median_high(_logged(out / "student", "perf/tokens_per_s")),
        "settings": asdict(config),
    }
    fsio.write_json(out / "summary.json", summary)
    print(render_template("tools/demo.txt.j2", **summary), end="\n\n")
    _fill(out / "student" / "export")
    print(f"\nAll of it is in {out}; the numbers are in {out / 'summary.json'}.")
    return 0


def _refuse_other(summary: Path) -> None:
    """Refuse a folder whose summary.json is not that of a demo: it would be replaced."""
    if not summary.exists():
        return
    try:
        found = fsio.read_json(summary)
    except ValueError:
        found = None
    if not (isinstance(found, dict) and {"models", "compute_ratio"} <= found.keys()):
        raise ConfigError(
            f"{summary} is not the summary of a demo; move it away, or name a new folder with --out"
        )


def _say(what: str) -> None:
    logger.info("== %s", what)


def _prepare(config: DemoConfig, shards: Path) -> None:
    from fitb.corpus.prepare import prepare
    from fitb.corpus.prepare_config import PrepareConfig

    if (shards / "manifest.json").exists():
        return
    _say("docstrings of this machine's packages become shards")
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
    """bf16 where this machine is faster with it, else fp32.

    Intel's avx512_bf16 without its tiles is not: MKL's fp32 outruns it (docs/experiments.md).
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
    """Train in several processes until finished; once, interrupt one of them with SIGUSR1."""
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
                _say(f"SIGUSR1 to one of {config.processes} processes, as a scheduler would")
                run.signal(signals.TIME_LIMIT, rank=config.processes - 1)
            code = run.wait()
        if code == FINISHED:
            return
        if code == RESUME and interrupted:
            _say("saved; the same command again")
        elif code == RESUME:
            raise TrainingError(f"{run_dir} was told to stop and is saved; `fitb demo` goes on")
        else:
            raise TrainingError(f"{run_dir} ended with exit code {code}; its lines above say why")


def _reaches_step(run: LocalRun, run_dir: Path, step: int) -> bool:
    """Wait until a step is logged; False where the run ends before."""
    while run.running():
        if max(_logged(run_dir, "train/step"), default=0) >= step:
            return True
        time.sleep(0.2)
    return False


def _logged(run_dir: Path, metric: str) -> list[Any]:
    """Return the values of a metric, in order."""
    return [record[metric] for record in fsio.read_lines(run_dir / "metrics.jsonl", metric)]


def _compute_ratio(run_dir: Path) -> float:
    """Floating-point operations of a distillation step over those of a plain MLM step."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fitb.config import ObjectiveConfig
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.data.masking import Vocabulary
    from fitb.evaluation.count import masked_batch
    from fitb.model.load import load_model
    from fitb.objective.objective import Objective
    from fitb.shards.shard_set import ShardSet

    config = parse(Config, "fitb demo", ["--config", str(run_dir / "config.yaml")])
    shards = ShardSet.open(config.data.shards, "train")
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    rows = np.arange(min(config.micro_batch, shards.num_rows))
    batch, _ = masked_batch(shards, rows, Vocabulary.of(tokenizer), config.mask, seed=0)

    def flops(with_teacher: bool) -> int:
        student = load_model(config.model.student, tokenizer=tokenizer, length=shards.length).model
        teacher = None
        if with_teacher and config.model.teacher is not None:
            teacher = load_model(config.model.teacher, tokenizer=tokenizer).model
        objective = Objective(student, teacher, config.objective if teacher else ObjectiveConfig())
        with FlopCounterMode(display=False) as counter:
            targets = None
            if teacher is not None:
                with torch.no_grad():
                    targets = objective.teacher_tap(teacher)(batch)
            objective(batch, targets).sum().backward()
        return int(counter.get_total_flops())

    return flops(with_teacher=True) / flops(with_teacher=False)


def _measure(config: DemoConfig, out: Path) -> tuple[dict[str, RowCounts], dict[str, Any]]:
    """Evaluate every model on the same rows; untrained is the student before its first step."""
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.data.masking import Vocabulary
    from fitb.evaluation.count import choose_rows, count
    from fitb.evaluation.metrics import summaries
    from fitb.model.load import load_model, num_parameters
    from fitb.shards.shard_set import ShardSet

    shards = ShardSet.open(out / "shards", "validation")
    tokenizer = load_tokenizer(out / "shards" / "tokenizer")
    rows = choose_rows(shards.num_rows, config.rows)
    student = parse(Config, "fitb demo", ["--config", str(out / "student" / "config.yaml")])
    counts, models = {}, {}
    for name in MODELS:
        source = student.model.student if name == "untrained" else str(out / name / "export")
        model = load_model(
            source, tokenizer=tokenizer, length=shards.length, seed=student.seed
        ).model
        began_s = time.monotonic()
        counts[name] = count(
            model, shards, rows, vocabulary=Vocabulary.of(tokenizer), mask=MaskConfig()
        )
        seconds = time.monotonic() - began_s
        intervals = summaries(counts[name])[0]
        models[name] = {
            "params": num_parameters(model),
            **{metric: interval.value for metric, interval in intervals.items()},
            "intervals": {m: [i.low, i.high] for m, i in intervals.items()},
            "tokens_per_s": len(rows) * shards.length / seconds,
            "steps": max(_logged(out / name, "train/step"), default=0),
        }
    return counts, models


def _differences(counts: dict[str, RowCounts]) -> dict[str, Any]:
    """Top-1 of the student minus that of each other model, paired over documents."""
    from fitb.evaluation.metrics import differences

    found = {}
    for name in MODELS:
        if name != "student":
            top1 = differences(counts["student"], counts[name])[0]["top1"]
            found[name] = {"top1": top1.value, "interval": [top1.low, top1.high]}
    return found


def _fill(model: Path) -> None:
    from fitb.infer.config import FillConfig
    from fitb.infer.fill import fill_from, render

    print(render(fill_from(FillConfig(model=str(model), texts=list(TEXTS), top_k=3))))
