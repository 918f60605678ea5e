"""The whole road on one machine: corpus, teacher, interrupted distillation, controls, a table.

Everything is what a cluster runs: `fitb prepare`, and `fitb train` in several processes under
DeepSpeed. What is finished is not done again, so an interrupted demo goes on.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitb import fsio
from fitb.cluster.local import LocalRun, forwarding, train_command
from fitb.config import Config, Geometry, MaskConfig
from fitb.config.parser import parse
from fitb.errors import FINISHED, RESUME, ConfigError, TrainingError

if TYPE_CHECKING:
    from fitb.evaluate.counts import RowCounts

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
    _export_untrained(out)
    _say("all of them on the same masked validation rows")
    counts, models = _measure(config, out)
    summary = {
        "models": models,
        "differences": _differences(counts),
        "attempts": _attempts(out / "student"),
        "compute_ratio": ratio,
        "seconds": time.monotonic() - began_s,
        "tokens_per_s": _training_speed(out / "student"),
        "settings": asdict(config),
    }
    fsio.write_json(out / "summary.json", summary)
    print(render(summary))
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
    from fitb.prepare.config import PrepareConfig
    from fitb.prepare.run import prepare

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
            if interrupt_at and _attempts(run_dir) == 0:
                interrupted = _reaches_step(run, run_dir / "metrics.jsonl", interrupt_at)
            if interrupted:
                _say(f"SIGUSR1 to one of {config.processes} processes, as a scheduler would")
                run.signal(signal.SIGUSR1, rank=config.processes - 1)
            code = run.wait()
        if code == FINISHED:
            return
        if code == RESUME and interrupted:
            _say("saved; the same command again")
        elif code == RESUME:
            raise TrainingError(f"{run_dir} was told to stop and is saved; `fitb demo` goes on")
        else:
            raise TrainingError(f"{run_dir} ended with exit code {code}; its lines above say why")


def _reaches_step(run: LocalRun, metrics: Path, step: int) -> bool:
    """Wait until a step is logged; False where the run ends before."""
    while run.running():
        if any(record["train/step"] >= step for record in fsio.read_lines(metrics, "train/step")):
            return True
        time.sleep(0.2)
    return False


def _attempts(run_dir: Path) -> int:
    return sum(
        event["event"] == "attempt"
        for event in fsio.read_records(run_dir / "events.jsonl", "event")
    )


def _training_speed(run_dir: Path) -> float:
    speeds = [
        r["perf/tokens_per_s"] for r in fsio.read_lines(run_dir / "metrics.jsonl", "train/step")
    ]
    return float(sorted(speeds)[len(speeds) // 2])


def _compute_ratio(run_dir: Path) -> float:
    """Floating-point operations of a distillation step over those of a plain MLM step."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fitb.config import ObjectiveConfig
    from fitb.corpus.shards import ShardSet
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.data.batch import Batch
    from fitb.data.masking import Vocabulary, mask_rows
    from fitb.distill.objective import Objective
    from fitb.model.load import load_model

    config = parse(Config, "fitb demo", ["--config", str(run_dir / "config.yaml")])
    shards = ShardSet.open(config.data.shards, "train")
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    rows = np.arange(min(config.micro_batch, shards.num_rows))
    read = shards.read(rows)
    masked = mask_rows(
        read.input_ids,
        read.word_starts,
        rows,
        np.zeros_like(rows),
        seed=0,
        vocabulary=Vocabulary.of(tokenizer),
        config=config.mask,
    )
    batch = Batch.of(masked)

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


def _export_untrained(out: Path) -> None:
    """The student as it was before its first step."""
    from fitb.corpus.shards import ShardSet
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.model.load import load_model, quiet

    folder = out / "untrained" / "export"
    if folder.exists():
        return
    config = parse(Config, "fitb demo", ["--config", str(out / "student" / "config.yaml")])
    assert isinstance(config.model.student, Geometry)
    tokenizer = load_tokenizer(out / "shards" / "tokenizer")
    length = ShardSet.open(out / "shards", "validation").length
    loaded = load_model(config.model.student, tokenizer=tokenizer, length=length, seed=config.seed)
    with quiet(), fsio.folder_written_whole(folder) as scratch:
        loaded.model.save_pretrained(scratch)
        tokenizer.model_max_length = length
        tokenizer.save_pretrained(scratch)


def _measure(config: DemoConfig, out: Path) -> tuple[dict[str, RowCounts], dict[str, Any]]:
    from fitb.corpus.shards import ShardSet
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.data.masking import Vocabulary
    from fitb.evaluate.count import choose_rows, count
    from fitb.evaluate.metrics import summarise
    from fitb.model.load import load_model, num_parameters

    shards = ShardSet.open(out / "shards", "validation")
    tokenizer = load_tokenizer(out / "shards" / "tokenizer")
    rows = choose_rows(shards.num_rows, config.rows)
    counts, models = {}, {}
    for name in MODELS:
        model = load_model(str(out / name / "export"), tokenizer=tokenizer).model
        began_s = time.monotonic()
        counts[name] = count(
            model, shards, rows, vocabulary=Vocabulary.of(tokenizer), mask=MaskConfig()
        )
        seconds = time.monotonic() - began_s
        intervals = summarise(counts[name])
        models[name] = {
            "params": num_parameters(model),
            **{metric: interval.value for metric, interval in intervals.items()},
            "intervals": {m: [i.low, i.high] for m, i in intervals.items()},
            "tokens_per_s": len(rows) * shards.length / seconds,
            "steps": _last_step(out / name),
        }
    return counts, models


def _last_step(run_dir: Path) -> int:
    return max(
        (r["train/step"] for r in fsio.read_lines(run_dir / "metrics.jsonl", "train/step")),
        default=0,
    )


def _differences(counts: dict[str, RowCounts]) -> dict[str, Any]:
    """Top-1 of the student minus that of each other model, paired over documents."""
    from fitb.evaluate.metrics import difference

    found = {}
    for name in MODELS:
        if name != "student":
            interval = difference(counts["student"], counts[name], "top1")
            found[name] = {"top1": interval.value, "interval": [interval.low, interval.high]}
    return found


def render(summary: dict[str, Any]) -> str:
    """The table for people."""
    return "\n".join(_lines(summary))


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield (
        f"{'model':<22}{'params':>10}{'steps':>7}{'loss':>7}{'ppl':>8}{'top-1':>8}{'top-5':>8}"
        f"{'exact':>8}{'tokens/s':>11}"
    )
    for name, row in summary["models"].items():
        yield (
            f"{name:<22}{row['params']:>10,}{row['steps']:>7}{row['loss']:>7.3f}{row['ppl']:>8.1f}"
            f"{row['top1']:>8.1%}{row['top5']:>8.1%}{row['span_em']:>8.1%}"
            f"{row['tokens_per_s']:>11,.0f}"
        )
    yield ""
    for name in ("control", "control_equal_compute"):
        low, high = (100 * end for end in summary["differences"][name]["interval"])
        gain = 100 * summary["differences"][name]["top1"]
        yield f"student - {name}: top-1 {gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    yield "(over documents of this kind; another seed, or another source of text, is not in it)"
    yield (
        f"distilled in {summary['attempts']} attempts at {summary['tokens_per_s']:,.0f} tokens/s;"
        f" {summary['seconds']:.0f} s in all"
    )
    yield ""


def _fill(model: Path) -> None:
    from fitb.infer.config import FillConfig
    from fitb.infer.fill import fill_from, render

    print(render(fill_from(FillConfig(model=str(model), texts=list(TEXTS), top_k=3))))
