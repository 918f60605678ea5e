"""A record to beat: seconds on two cores to a share of the teacher's top-1, on a fixed corpus.

    make record                                 # the demo's settings
    make record RECORD="--steps 150 --optim.lr 4e-3"

Corpus, shards and teacher are those of the ablation (4 x 192; made once, not timed). Timed is
`fitb train` in two processes, from start to export, for each seed. A record counts if the mean
top-1 over the seeds is at least `--share` of the teacher's, the student has at most the 1,816,768
parameters of the demo's, and it begins at random or from the teacher. Words that are not options of
this program are flags of `fitb train`. Prints one line for the table of docs/experiments.md.
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
from fitb.corpus.tokenizer import load_tokenizer
from fitb.model.load import load_model, num_parameters

MAX_PARAMETERS = 1_816_768


def _steps(flags: list[str]) -> list[str]:
    """Return the number of steps and of warm-up steps, as the demo has them."""
    steps = int(flags[flags.index("--steps") + 1]) if "--steps" in flags else 200
    return ["--steps", str(steps), "--optim.warmup_steps", str(steps // 10)]


def train(out: Path, flags: list[str], seed: int) -> tuple[float, float]:
    """Train a student; return seconds and top-1.

    Raises: SystemExit if the training fails or the student is too large.
    """
    folder = out / "record" / f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    words = ["--config", "demo", "--precision", "fp32", *_steps(flags), *flags]
    words += ["--model.teacher", str(out / "teacher" / "export"), "--track.wandb", "disabled"]
    words += ["--data.shards", str(out / "shards"), "--seed", str(seed), "--run_dir", str(folder)]
    began_s = time.monotonic()
    with LocalRun(train_command(words), 2) as run:
        code = run.wait()
    seconds = time.monotonic() - began_s
    if code != 0:
        sys.exit(f"{folder} ended with {code}")
    tokenizer = load_tokenizer(out / "shards" / "tokenizer")
    parameters = num_parameters(load_model(str(folder / "export"), tokenizer=tokenizer).model)
    if parameters > MAX_PARAMETERS:
        sys.exit(f"the student has {parameters} parameters; at most {MAX_PARAMETERS} are allowed")
    return seconds, top1_of(counts_beside_teacher(folder / "export", out))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("build/record"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.95)
    args, flags = parser.parse_known_args()
    student = flags[flags.index("--model.student") + 1] if "--model.student" in flags else "{"
    if any(word.startswith("--branch_from") for word in flags) or not student.startswith("{"):
        sys.exit("a record begins at random or from the teacher, not with a trained student")
    prepare_corpus(args.out, "docstrings", 4096)
    goal = args.share * teacher_top1(args.out)
    found = [train(args.out, flags, seed) for seed in args.seeds]
    top1 = statistics.fmean(each for _, each in found)
    seconds = statistics.fmean(each for each, _ in found)
    spread = f"{min(found)[0]:.0f} to {max(found)[0]:.0f}"
    reached = "reached" if top1 >= goal else "not reached"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    scores = ", ".join(f"{100 * each:.1f}" for _, each in found)
    print(
        f"| {seconds:.0f} s ({spread}) | {top1:.1%} ({scores}), goal {goal:.1%} {reached} |"
        f" {' '.join(flags) or 'as shipped'} | {time.strftime('%Y-%m-%d')} | {commit} |"
        f" {machine()['cpu']} |"
    )
    return 0 if top1 >= goal else 1


if __name__ == "__main__":
    sys.exit(main())
