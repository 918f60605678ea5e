"""Ablation of the training recipe: settings x seeds on a fixed corpus, as one table.

    python tests/benchmarks/ablate.py OUT [--corpus docstrings] [--vocab_size 4096] [--grid default]
                                      [--seeds 0 1 2] [--steps 300] [--minutes 60] [--only NAME ...]

The teacher is the demo's (4 x 192, MLM alone); students have 2 layers. Every run is `fitb train` in
one process with one thread, two at a time. After `--minutes` runs are stopped, and the same command
goes on with them: finished runs are not run again. OUT/GRID.json and OUT/GRID.md hold, for each
setting, means over seeds, and differences from the first of them with 95 % intervals: paired over
documents (bootstrap), and over seeds (Student's t). All models see the same masks of the validation
rows; --only and --seeds choose what is run, and the table holds all that is finished.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablate_grids import GRIDS, NO_FLAGS, STUDENTS
from corpora import corpus
from numpy.typing import NDArray

from fitb.base.fsio import read_json, write_atomic, write_json
from fitb.bench.timing import machine
from fitb.config import Config, MaskConfig
from fitb.config.parser import parse
from fitb.corpus.prepare import prepare
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.masking import Vocabulary
from fitb.evaluation.count import choose_rows, masked_batch
from fitb.evaluation.metrics import differences, metrics_of
from fitb.evaluation.row_counts import RowCounts, count_rows, piece_classes
from fitb.evaluation.score import Bert, score
from fitb.model.load import load_model
from fitb.shards.shard_set import ShardSet
from fitb.tools.demo import flops_of_step

SIZES = (1, 2, 3, 4)  # subwords of a word; the last group holds longer words too
ROWS = 1024  # validation rows
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t at 97.5 % by number of seeds


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        name: name of its setting.
        seed: seed of weights, order, masks and dropout.
        flags: flags of `fitb train`.
        folder: run folder.
        after: folder of the run whose student this one begins with, if any.
    """

    name: str
    seed: int
    flags: tuple[str, ...]
    folder: Path
    after: Path | None = None

    @property
    def counts(self) -> Path:
        return Path(f"{self.folder}.npz")

    @property
    def ready(self) -> bool:
        """Whether what it begins with is there."""
        return self.after is None or Path(f"{self.after}.npz").exists()


def _shape(layers: int, width: int) -> str:
    shape = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
    return json.dumps(shape | {"num_attention_heads": 4})


def common_flags(out: Path, student: tuple[int, int], steps: int) -> dict[str, Any]:
    """Return the settings that all runs share, whatever the presets become."""
    return {
        "global_batch": 32,
        "micro_batch": 8,
        "model.dropout": 0,
        "optim.lr": 2e-3,
        "model.teacher": out / "teacher" / "export",
        "model.student": _shape(*student),
        "data.shards": out / "shards",
        "steps": steps,
        "optim.warmup_steps": steps // 10,
        "precision": "fp32",
        "eval.every_steps": 0,
        "checkpoint.every_steps": 0,
        "track.wandb": "disabled",
        "track.every_steps": 50,
    }


def command(flags: Mapping[str, Any] | Sequence[str], folder: Path) -> list[str]:
    """Return the command line of a training."""
    words = flags
    if isinstance(flags, Mapping):
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "fitb", "train", *words, "--run_dir", str(folder)]


def environment(threads: int) -> dict[str, str]:
    """Return this environment with a number of threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def prepare_corpus(out: Path, name: str, vocab_size: int) -> None:
    """Prepare shards, and train the teacher on them, unless both are there.

    Raises: SystemExit if `out` holds those of another corpus or vocabulary.
    """
    text = str(corpus(out, name))
    if (out / "shards" / "manifest.json").exists():
        made = read_json(out / "shards" / "manifest.json", "settings")["settings"]
        there = Path(made["files"][0]).name, made["vocab_size"]
        if there != (Path(text).name, vocab_size):
            sys.exit(
                f"{out} holds {there}, not {(Path(text).name, vocab_size)}; choose another OUT"
            )
    else:
        about = {"vocab_size": vocab_size, "length": 64, "validation_fraction": 0.1}
        prepare(PrepareConfig(out=str(out / "shards"), source="jsonl", files=[text], **about))
    flags = {
        "model.teacher": "null",
        "model.student": _shape(4, 192),
        "model.dropout": 0,
        "data.shards": out / "shards",
        "algorithms.masks": 3,
        "mask.fraction": 0.4,
        "steps": 2000,
        "global_batch": 32,
        "micro_batch": 16,
        "optim.lr": 1e-3,
        "optim.warmup_steps": 200,
        "precision": "fp32",
        "track.wandb": "disabled",
    }
    if not finished(out / "teacher"):
        subprocess.run(command(flags, out / "teacher"), check=True, env=environment(2))


def finished(folder: Path) -> bool:
    """Whether a run has ended with all steps done."""
    try:
        config = parse(Config, "ablate", ["--config", str(folder / "config.yaml")])
        return (folder / "checkpoints" / f"step-{config.steps:07d}" / "manifest.json").exists()
    except Exception:  # no run, or not one that has begun
        return False


def train_all(runs: Sequence[Run], out: Path, ends_s: float, at_once: int) -> bool:
    """Run what is not finished, some at a time; stop what runs at the deadline. Return if done."""
    waiting = [run for run in runs if not run.counts.exists()]
    running: dict[Run, subprocess.Popen[bytes]] = {}
    complete = True
    while True:
        ready = [run for run in waiting if run.ready and time.time() < ends_s]
        for run in ready[: at_once - len(running)]:
            waiting.remove(run)
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            with open(f"{run.folder}.log", "ab") as log:
                words = command(run.flags, run.folder)
                running[run] = subprocess.Popen(
                    words, env=environment(1), stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
        if not running:
            return complete and not waiting
        if time.time() > ends_s:
            for process in running.values():
                process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        for run, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[run]
            if process.returncode == 0:
                evaluate(run, out)
                print(f"{time.strftime('%H:%M:%S')} {run.name}, seed {run.seed}", flush=True)
            else:
                complete = False
                if process.returncode != 85:
                    print(f"{run.folder} ended with {process.returncode}", flush=True)


class BySubwords:
    """Groups of words for `masked_batch`: all, then by number of subwords."""

    def groups(
        self,
        rows: NDArray[np.int64],
        input_ids: NDArray[np.int64],
        words: NDArray[np.int64],
        touched: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Return (B, L, G) bool, the groups of each word by its number."""
        sizes = np.zeros(words.shape, dtype=np.int64)
        row = np.broadcast_to(np.arange(len(words))[:, None], words.shape)
        np.add.at(sizes, (row[words >= 0], words[words >= 0]), 1)
        by_size = [np.minimum(sizes, SIZES[-1]) == size for size in SIZES]
        return np.stack([np.ones_like(touched), *by_size], axis=2)


def evaluate(run: Run, out: Path) -> None:
    """Count a student's correct predictions beside its teacher's, and store them."""
    config = parse(Config, "ablate", ["--config", str(run.folder / "config.yaml")])
    counts = counts_beside_teacher(run.folder / "export", out)
    cost = flops_of_step(config) * config.steps
    if run.after:
        cost += float(np.load(f"{run.after}.npz")["flops"])
    np.savez(run.counts, rows=counts.rows, documents=counts.documents, sums=counts.sums, flops=cost)


def counts_beside_teacher(model: Path, out: Path) -> RowCounts:
    """Count a model's correct predictions on validation rows; `agreement` is with the teacher."""
    shards = ShardSet.open(str(out / "shards"), "validation")
    tokenizer = load_tokenizer(out / "shards" / "tokenizer")
    sources = {"model": model, "teacher": out / "teacher" / "export"}
    predictors = {
        role: Bert(load_model(str(source), tokenizer=tokenizer).model)
        for role, source in sources.items()
    }
    rows, vocabulary = choose_rows(shards.num_rows, ROWS), Vocabulary.of(tokenizer)
    classes = piece_classes(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    parts = []
    for begin in range(0, len(rows), 64):
        some = rows[begin : begin + 64]
        batch, slots = masked_batch(shards, some, vocabulary, MaskConfig(), 0, BySubwords())
        with torch.no_grad():
            scores = score(predictors, batch, teacher="teacher")
        parts.append(count_rows(slots, scores["model"], classes))
    return RowCounts.joined(parts)


def counts_of(run: Run) -> tuple[RowCounts, float]:
    """Read what `evaluate` stored: counts and floating-point operations."""
    stored = np.load(run.counts)
    return RowCounts(stored["rows"], stored["documents"], stored["sums"]), float(stored["flops"])


def teacher_top1(out: Path) -> float:
    """Return the teacher's top-1 on the same masks."""
    return top1_of(counts_beside_teacher(out / "teacher" / "export", out))


def table(runs: Sequence[Run], teacher: float) -> list[dict[str, Any]]:
    """Return one row per setting with finished runs, compared with the first setting.

    Args:
        teacher: top-1 of the teacher.
    """
    done = [run for run in runs if run.counts.exists()]
    names = list(dict.fromkeys(run.name for run in done))
    by_name = {name: {r.seed: counts_of(r) for r in done if r.name == name} for name in names}
    first = by_name[names[0]]
    by_name = {name: found for name, found in by_name.items() if found.keys() & first.keys()}
    steps = {run.folder: int(run.flags[run.flags.index("--steps") + 1]) for run in done}
    total = {run.name: steps[run.folder] + steps.get(run.after, 0) for run in done}
    rows = [{"setting": name, **row_of(by_name[name], first)} for name in by_name]
    return [
        {**row, "retention": row["top1"] / teacher, "steps": total[row["setting"]]} for row in rows
    ]


def row_of(
    mine: Mapping[int, tuple[RowCounts, float]], first: Mapping[int, tuple[RowCounts, float]]
) -> dict[str, Any]:
    """Return means over seeds, and differences of top-1 over the seeds that both have."""
    seeds = sorted(mine.keys() & first.keys())
    metrics = [metrics_of(mine[seed][0].totals()) for seed in seeds]
    row: dict[str, Any] = {"seeds": seeds, "flops": next(iter(mine.values()))[1]}
    for metric in ("top1", "loss", "span_em", "agreement"):
        row[metric] = statistics.fmean(float(each[metric][0]) for each in metrics)
    row["span_em_by_subwords"] = [
        statistics.fmean(float(each["span_em"][group]) for each in metrics)
        for group in range(1, len(SIZES) + 1)
    ]
    pairs = [(mine[seed][0], first[seed][0]) for seed in seeds]
    gaps = [top1_of(ours) - top1_of(theirs) for ours, theirs in pairs]
    ours, theirs = (pooled([pair[side] for pair in pairs]) for side in (0, 1))
    over_documents = differences(ours, theirs)[0]["top1"]
    row["difference"] = statistics.fmean(gaps)
    row["over_documents"] = [over_documents.low, over_documents.high]
    if len(gaps) in _T:
        half = _T[len(gaps)] * statistics.stdev(gaps) / math.sqrt(len(gaps))
        row["over_seeds"] = [row["difference"] - half, row["difference"] + half]
    return row


def top1_of(counts: RowCounts) -> float:
    return float(metrics_of(counts.totals())["top1"][0])


def pooled(counts: Sequence[RowCounts]) -> RowCounts:
    """Add the counts of several seeds on the same rows."""
    return RowCounts(counts[0].rows, counts[0].documents, sum(each.sums for each in counts))


def rendered(rows: Sequence[Mapping[str, Any]], about: str) -> str:
    """Return the table as Markdown; differences are of top-1, in points."""

    def interval(found: Sequence[float] | None) -> str:
        return "" if found is None else f"{100 * found[0]:+.1f} to {100 * found[1]:+.1f}"

    exact = f"exact, words of {', '.join(map(str, SIZES))}+ subwords"
    head = ["setting", "top-1", "of the teacher's", "difference", "over documents", "over seeds"]
    head += ["loss", exact, "agreement", "steps", "TFLOP", "seeds"]
    lines = [about, "", " | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for row in rows:
        cells = [
            row["setting"],
            f"{row['top1']:.1%}",
            f"{row['retention']:.0%}",
            f"{100 * row['difference']:+.1f}",
            interval(row["over_documents"]),
            interval(row.get("over_seeds")),
            f"{row['loss']:.3f}",
            ", ".join(f"{100 * share:.1f}" for share in row["span_em_by_subwords"]),
            f"{row['agreement']:.1%}",
            str(row["steps"]),
            f"{row['flops'] / 1e12:.1f}",
            str(len(row["seeds"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def all_runs(args: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs of a grid, seed by seed, so that a part is a smaller table and no half one."""
    for seed, (name, changed) in itertools.product(args.seeds, GRIDS[args.grid].items()):
        if args.only and name not in args.only:
            continue
        steps = round(args.steps * changed.get("times_steps", 1))
        shared = common_flags(args.out, STUDENTS.get(args.grid, (2, 192)), steps)
        shared |= {"seed": seed} | {k: v for k, v in changed.items() if k not in NO_FLAGS}
        if "decay_share" in changed:
            shared["optim.decay_steps"] = round(steps * changed["decay_share"])
        after = None
        if "after" in changed:  # other rows than those that it has seen
            after = folder_of(args, changed["after"], seed)
            shared |= {"model.student": after / "export", "seed": seed + 1000}
        flags = command(shared, Path())[4:-2]
        yield Run(name, seed, tuple(flags), folder_of(args, name, seed), after)


def folder_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Return the run folder of a setting and seed."""
    slug = "".join(c if c.isalnum() else "-" for c in name)
    return Path(args.out / args.grid / f"{slug}.{seed}.{args.steps}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", choices=("docstrings", "wordnet"), default="docstrings")
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--grid", choices=tuple(GRIDS), default="default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--at_once", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[])
    args = parser.parse_args()
    ends_s = time.time() + 60 * args.minutes
    prepare_corpus(args.out, args.corpus, args.vocab_size)
    runs = list(all_runs(args))
    complete = train_all(runs, args.out, ends_s, args.at_once)
    teacher = teacher_top1(args.out)
    everything = argparse.Namespace(**{**vars(args), "only": [], "seeds": range(max(_T))})
    rows = table(list(all_runs(everything)), teacher)
    about = f"{args.corpus}, vocabulary {args.vocab_size}, {args.steps} steps"
    about += f", teacher {teacher:.1%}, {machine()['cpu']}"
    write_json(args.out / f"{args.grid}.json", {"rows": rows, "about": about})
    text = rendered(rows, about)
    write_atomic(args.out / f"{args.grid}.md", text.encode())
    print(text)
    return 0 if complete else 85


if __name__ == "__main__":
    sys.exit(main())
