"""The command line: parse, call, print, exit code. Heavy imports happen inside the commands."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import fitb
from fitb import log
from fitb.config import Config
from fitb.errors import CRASH, STOP, ConfigError, FitbError, nearest

T = TypeVar("T")
INTERRUPTED = 130  # what a shell gives a command that Ctrl-C ended

HELP = """usage: fitb COMMAND [flags]

fitb distils BERT into TinyBERT on cluster schedulers, preempted and resumed to the bit.

commands:
  doctor     what is missing or wrong on this machine, each with what to type
  scripts    where the batch scripts for sbatch lie, or a copy of them
  site       write slurm/site.env: account, partition and so on, from what Slurm says
  prepare    text in, Arrow shards and a manifest out
  inspect    statistics and masked examples of shards, for a terminal, as JSON or as a page
  train      begin a run or go on with it (started by srun, submitit, torchrun or alone)
  status     where a run stands: attempts, rate, last save, why it stopped
  report     a run, or several side by side, as one page of HTML, and charts for papers
  rehearse   stop the job on your cluster as Slurm would, and hold its saves against the leads
  sync       send a run's metrics to Weights & Biases as one run, whatever its attempts did
  evaluate   how well a model fills masked positions, beside baselines, with 95 % intervals
  compare    two models on the same rows and masks: paired differences and p-values
  fill       fill the blanks of sentences
  serve      fill blanks over HTTP, and on a page for people
  export     a model as a Hugging Face folder with its card, and for onnxruntime
  plan       what a run will take: time, traffic, checkpoints, losses to preemption
  bench      measure, and print medians with their spread
  demo       the whole road on this machine: corpus, teacher, student, controls

`fitb COMMAND --help` lists the flags of a command. Exit codes of train: 0 finished, 85 saved and
wants to be started again, 93 starting again would not help, anything else a crash. Exit codes of
the other commands: 0 done, 1 rehearsed and not safe, 2 configuration, 3 data or models, 4 machine,
5 training. Of doctor: 0 all fine, 1 warnings, 2 something bad.
"""

BENCHMARKS = {
    "step": "tokens per second of training, its parts, MFU; --baseline beside the plain way",
    "attention": "time and memory of the attention term, beside the form with L x L scores",
    "comm": "latency and bandwidth of the collectives between ranks",
    "plan": "steps in 1, 2 and 4 processes beside what `fitb plan` predicts of them",
    "resume": "seconds from a signal to a checkpoint, and from a start to the first step",
    "blanks": "words of 1 to 4 pieces filled exactly: beam, greedy, per-mask marginals",
    "infer": "filling: student, teacher, onnxruntime, transformers' pipeline, the server",
    "data": "text to shards against the bare tokenizer; rows per second; seek; memory",
    "duplicates": "recall and precision of near-duplicates planted at known similarities",
    "all": "each of them with its defaults, but blanks, which takes a trained model",
}
BENCH_HELP = "usage: fitb bench WHAT [flags]\n\n" + "".join(
    f"  {what:12} {description}\n" for what, description in BENCHMARKS.items()
)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = list(sys.argv[1:] if args is None else args)
    command, flags = (words[0], words[1:]) if words else ("--help", [])
    if command in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(_version())
        return 0
    log.setup()
    try:
        if command not in COMMANDS:
            message = f"unknown command {command!r}{nearest(command, COMMANDS)}"
            raise ConfigError(f"{message}; `fitb --help` lists all")
        code = COMMANDS[command](flags)
        sys.stdout.flush()  # a reader that has gone is noticed here, not at the interpreter's end
        return code
    except KeyboardInterrupt:
        logging.getLogger("fitb").error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CRASH
    except FitbError as error:
        logging.getLogger("fitb").error("%s", error)
        return STOP if command == "train" and not error.restart_helps else error.exit_code


def parse(kind: type[T], prog: str, flags: list[str], positional: str | None = None) -> T:
    """As fitb.flags has it; the doctor must start where its libraries are missing."""
    from fitb import flags as of_fitb

    return of_fitb.parse(kind, prog, flags, positional)


def _version() -> str:
    """Name the version, and in a checkout the commit."""
    root = Path(fitb.__file__).parents[1]
    if not (root / ".git").exists():
        return f"fitb {fitb.__version__}"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return f"fitb {fitb.__version__}"
    commit = done.stdout.strip()
    return f"fitb {fitb.__version__}" + (f" ({commit})" if commit else "")


def _doctor(flags: list[str]) -> int:
    from fitb.doctor.check import as_json, exit_code, render
    from fitb.doctor.run import doctor, parse_where

    where, training = parse_where(flags)
    found = doctor(where, training)
    print(json.dumps(as_json(found)) if where.json else render(found))
    return exit_code(found)


def _scripts(flags: list[str]) -> int:
    from fitb.cluster.scripts import ScriptsConfig, scripts

    print(scripts(parse(ScriptsConfig, "fitb scripts", flags, positional="out")))
    return 0


def _site(flags: list[str]) -> int:
    from fitb.site import HELP as SITE_HELP
    from fitb.site import SiteConfig, init, say

    what, *rest = flags or ["--help"]
    if what in ("-h", "--help"):
        print(SITE_HELP, end="")
        return 0
    if what != "init":
        raise ConfigError(f"unknown word {what!r} after `fitb site`; expected init")
    config = parse(SiteConfig, "fitb site init", rest)
    result = init(config)
    print(json.dumps(result) if config.json else say(result))
    return 0


def _prepare(flags: list[str]) -> int:
    from fitb.prepare.config import PrepareConfig
    from fitb.prepare.run import prepare

    print(prepare(parse(PrepareConfig, "fitb prepare", flags)))
    return 0


def _inspect(flags: list[str]) -> int:
    from fitb.inspect.page import render, write_page
    from fitb.inspect.run import InspectConfig, inspect

    config = parse(InspectConfig, "fitb inspect", flags, positional="shards")
    result = inspect(config)
    if config.html:
        write_page(Path(config.html), result)
    print(json.dumps(result) if config.json else render(result))
    return 0


def _train(flags: list[str]) -> int:
    config = parse(Config, "fitb train", flags)
    from fitb.train.loop import train

    return train(config)


def _sync(flags: list[str]) -> int:
    from fitb.sync import SyncConfig, sync

    print(sync(parse(SyncConfig, "fitb sync", flags, positional="run")))
    return 0


def _status(flags: list[str]) -> int:
    from fitb.status.page import show
    from fitb.status.run import StatusConfig

    return show(parse(StatusConfig, "fitb status", flags, positional="run"))


def _report(flags: list[str]) -> int:
    from fitb.report.config import ReportConfig
    from fitb.report.run import as_text, report

    config = parse(ReportConfig, "fitb report", flags, positional="runs")
    with contextlib.redirect_stdout(sys.stderr):  # libraries talk
        result = report(config)
    print(json.dumps(result) if config.json else as_text(result))
    return 0


def _rehearse(flags: list[str]) -> int:
    from fitb.rehearse.judge import as_json, render
    from fitb.rehearse.run import parse_where, rehearse

    where, training = parse_where(flags)
    found = rehearse(where, training)
    print(json.dumps(as_json(found)) if where.json else render(found))
    return 1 if found.reasons else 0


def _evaluate(flags: list[str]) -> int:
    from fitb.evaluate.config import EvaluateConfig
    from fitb.evaluate.folder import evaluate_all, render_all
    from fitb.evaluate.table import render

    config = parse(EvaluateConfig, "fitb evaluate", flags)
    if config.out:
        found = evaluate_all(config, os.environ)
        if found:
            print(json.dumps(found) if config.json else render_all(found))
        return 0
    from fitb.evaluate.run import evaluate

    result = evaluate(config)
    if result:  # of rank 0 alone
        print(json.dumps(result) if config.json else render(result))
    return 0


def _compare(flags: list[str]) -> int:
    from fitb.evaluate.compare import compare, render
    from fitb.evaluate.config import CompareConfig

    config = parse(CompareConfig, "fitb compare", flags, positional="models")
    result = compare(config)
    if result:
        print(json.dumps(result) if config.json else render(result))
    return 0


def _fill(flags: list[str]) -> int:
    from fitb.infer.fill import FillConfig, as_json, fill_from, render

    config = parse(FillConfig, "fitb fill", flags, positional="texts")
    if config.texts == ["-"]:
        config = dataclasses.replace(config, texts=sys.stdin.read().splitlines())
    filled = fill_from(config)
    print(json.dumps(as_json(filled), ensure_ascii=False) if config.json else render(filled))
    return 0


def _serve(flags: list[str]) -> int:
    # Before torch loads OpenMP: threads that wait awake for one another starve the event loop.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from fitb.serve.config import ServeConfig

    config = parse(ServeConfig, "fitb serve", flags, positional="model")
    try:
        from fitb.serve.run import serve
    except ImportError as error:
        if (error.name or "").split(".")[0] == "fitb":
            raise
        message = f"{error.name} is not installed; `pip install 'fitb[serve]'` brings it"
        raise ConfigError(message) from error
    return serve(config)


def _export(flags: list[str]) -> int:
    from fitb.export import ExportConfig, export, render

    config = parse(ExportConfig, "fitb export", flags, positional="source")
    with contextlib.redirect_stdout(sys.stderr):  # libraries talk
        result = export(config)
    print(json.dumps(result) if config.json else render(result))
    return 0


def _plan(flags: list[str]) -> int:
    from fitb.plan import PlanConfig, as_json, plan, render

    config = parse(PlanConfig, "fitb plan", flags)
    found = plan(config)
    print(json.dumps(as_json(found)) if config.json else render(config, found))
    return 0


def _bench(flags: list[str]) -> int:
    what, *rest = flags or ["--help"]
    if what in ("-h", "--help"):
        print(BENCH_HELP, end="")
        return 0
    if what not in BENCHMARKS:
        expected = ", ".join(BENCHMARKS)
        message = f"unknown benchmark {what!r}{nearest(what, BENCHMARKS)}"
        raise ConfigError(f"{message}; expected one of {expected}")
    module = importlib.import_module(f"fitb.bench.{what}")
    config = parse(module.BenchConfig, f"fitb bench {what}", rest)
    with contextlib.redirect_stdout(sys.stderr):  # libraries talk; the row alone is the output
        result = module.bench(config)
    if not result:  # of a rank other than 0
        return 0
    print(json.dumps(result) if config.json else module.render(result))
    return 0


def _demo(flags: list[str]) -> int:
    from fitb.demo import DemoConfig, demo

    return demo(parse(DemoConfig, "fitb demo", flags))


COMMANDS = {
    "doctor": _doctor,
    "scripts": _scripts,
    "site": _site,
    "prepare": _prepare,
    "inspect": _inspect,
    "train": _train,
    "status": _status,
    "report": _report,
    "rehearse": _rehearse,
    "sync": _sync,
    "evaluate": _evaluate,
    "compare": _compare,
    "fill": _fill,
    "serve": _serve,
    "export": _export,
    "plan": _plan,
    "bench": _bench,
    "demo": _demo,
}
