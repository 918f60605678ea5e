"""`fitb train` on a GPU, in processes of its own: stopped while it compiles, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from setting import Setting, Wrong

from fitb.base.fsio import read_lines, to_json


def signalled(at: Setting) -> dict[str, Any]:
    """SIGUSR1 to every process of a run while it compiles: it saves and leaves with 85."""
    run, cache = at.out / "signalled", at.out / "cache"
    more = ("--stop.time_budget_min", "5")  # ends it if nobody else does
    apart = at.apart()
    apart["env"] |= {"TORCHINDUCTOR_CACHE_DIR": str(cache)}  # nothing is compiled yet
    process = subprocess.Popen(
        _train(at, run, 100_000, more), start_new_session=True, stderr=subprocess.DEVNULL, **apart
    )
    sign = run / "config.yaml" if at.dry else cache
    try:
        _until(lambda: sign.exists() and (sign.is_file() or any(sign.iterdir())), 120, process)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGUSR1)
        code = process.wait(150)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    at.require(f"exit code 85, found {code}", code == 85)
    return {"exit_code": code, "steps": len(list(_lines(run)))}


def train(at: Setting) -> dict[str, Any]:
    """`fitb train` in fp16: the loss falls, few steps are skipped, a stopped run ends alike."""
    steps, precision = (8, "bf16") if at.dry else (150, "fp16")
    runs = {name: at.out / name for name in ("whole", "stopped")}
    more = ("--precision", precision)
    commands = {name: _train(at, run, steps, more) for name, run in runs.items()}
    whole = subprocess.run(commands["whole"], check=False, **at.apart())
    at.require("it ends", whole.returncode == 0)
    stopped = subprocess.Popen(commands["stopped"], **at.apart())
    _until(lambda: any(_lines(runs["stopped"])), 240, stopped)
    stopped.send_signal(signal.SIGUSR1)
    at.require("a stopped run leaves with 85", stopped.wait(120) == 85)
    subprocess.run(commands["stopped"], check=True, **at.apart())
    metrics = {name: list(_lines(run)) for name, run in runs.items()}
    first, last = metrics["whole"][0], metrics["whole"][-1]
    at.require("the loss falls", last["train/loss"] < first["train/loss"])
    at.require("few steps are skipped", last.get("optim/skipped_steps", 0) <= 0.1 * steps)
    ends = [one[-1]["train/loss"] for one in metrics.values()]
    return {
        "loss": [first["train/loss"], last["train/loss"]],
        "resumed_apart": at.close("the end of a stopped run", ends[1], ends[0], 2e-2),
        "tokens_per_s": last.get("perf/tokens_per_s"),
        "data_wait_frac": last.get("perf/data_wait_frac"),
    }


def _lines(run: Path) -> Iterator[dict[str, Any]]:
    log = run / "metrics.jsonl"
    return read_lines(log) if log.exists() else iter(())


def _train(at: Setting, run: Any, steps: int, more: tuple[str, ...] = ()) -> list[str]:
    teacher, student = at.sizes()
    flags = {
        "run_dir": run,
        "steps": steps,
        "global_batch": at.rows(256),
        "data.shards": at.shards / "128",
        "model.teacher": to_json(asdict(teacher)),
        "model.student": to_json(asdict(student)),
        "model.dropout": 0,
        "optim.warmup_steps": steps // 10,
        "eval.every_steps": 0,
        "checkpoint.every_steps": 0,
        "track.wandb": "disabled",
        "track.every_steps": 1,
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "fitb", "train", *words, *more]


def _until(ready: Callable[[], bool], seconds: float, process: Any) -> None:
    end_s = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end_s or process.poll() is not None:
            raise Wrong(f"a run did not get so far within {seconds:g} s: {process.poll()}")
        time.sleep(0.1)
