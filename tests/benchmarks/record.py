"""A record to beat: seconds on two cores to a share of the teacher's top-1, on a fixed corpus.

    make record                                 # the demo's settings
    make record RECORD="--steps 150 --optim.lr 4e-3"

Corpus, shards and teacher are those of the ablation (4 x 192; made once, not timed). Timed is
`fitb train` in two processes, from start to export, for each seed. A record counts if the mean
top-1 over the seeds is at least `--share` of the teacher's and the student has at most two thirds
of its parameters. All words that are not options of this program are flags of `fitb train`. Prints
one line for the table of docs/experiments.md.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ablate import counts_beside_teacher, prepare_corpus, teacher_top1, top1_of

from fitb.bench.timing import machine
from fitb.cluster.local import LocalRun, train_command
from fitb.model.load import load_model, num_parameters

MAX_PARAMETERS = 1_816_768


def train(out: Path, flags: list[str], seed: int) -> tuple[float, float]:
    """Train a student; return seconds and top-1.

    Raises: SystemExit if the training fails or the student is too large.
    """
    folder = out / "record" / f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    words = ["--config", "demo", "--precision", "fp32", "--steps", "200", *flags]
    words += ["--model.teacher", str(out / "teacher" / "export"), "--track.wandb", "disabled"]
    words += ["--data.shards", str(out / "shards"), "--seed", str(seed), "--run_dir", str(folder)]
    began_s = time.monotonic()
    with LocalRun(train_command(words), 2) as run:
        code = run.wait()
    seconds = time.monotonic() - began_s
    if code != 0:
        sys.exit(f"{folder} ended with {code}")
    parameters = num_parameters(load_model(str(folder / "export")).model)
    if parameters > MAX_PARAMETERS:
        sys.exit(f"the student has {parameters} parameters; at most {MAX_PARAMETERS} are allowed")
    return seconds, top1_of(counts_beside_teacher(folder / "export", out))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("build/record"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.95)
    args, flags = parser.parse_known_args()
    prepare_corpus(args.out, "docstrings", 4096)
    goal = args.share * teacher_top1(args.out)
    found = [train(args.out, flags, seed) for seed in args.seeds]
    seconds, top1 = (statistics.fmean(each) for each in zip(*found, strict=True))
    reached = "reached" if top1 >= goal else "not reached"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    scores = ", ".join(f"{100 * each:.1f}" for _, each in found)
    print(
        f"| {seconds:.0f} s | {top1:.1%} ({scores}), goal {goal:.1%} {reached} |"
        f" {' '.join(flags) or 'as shipped'} | {time.strftime('%Y-%m-%d')} | {commit} |"
        f" {machine()['cpu']} |"
    )
    return 0 if top1 >= goal else 1


if __name__ == "__main__":
    sys.exit(main())
