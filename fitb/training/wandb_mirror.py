"""Weights & Biases on a thread of its own, fed from metrics.jsonl.

The file is the queue: training appends a line and says so, the thread reads on from where it was.
Nothing is dropped, nothing waits, and an attempt that W&B knows too little of is made up for: the
thread asks the server for the last step it holds and begins behind it. A line's `_step` in W&B is
its train/step, so what the server says of its last line is the answer.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fitb.base.errors import CRASH
from fitb.base.fsio import DamagedFile, parse_json
from fitb.base.redact import redacted
from fitb.config.yaml import flatten
from fitb.rundir.names import STEP

logger = logging.getLogger(__name__)

START_LIMIT_S = 30.0  # for the server's first answer; then the attempt is written offline
FINISH_LIMIT_S = 20.0  # for all that is left at the end, the thread's start included
_UPLOAD_LIMIT_S = 15.0  # of it, for the upload; W&B itself gives up then, and says so
_KILL_LIMIT_S = 3.0  # for W&B's process to go, once it is told to
_LINES_A_BREATH, _BREATH_S = 20, 0.02  # catching up leaves the interpreter to training
LATER = "metrics.jsonl has all; the next attempt or `fitb sync` sends what is missing"


@dataclass(frozen=True)
class Target:
    """Which W&B run is written, and what it says of itself.

    Args:
        run_id: one for all attempts.
        config: dotted keys and values.
    """

    run_id: str
    project: str
    entity: str | None
    name: str
    config: dict[str, Any]


def target_of(run_id: str, name: str, config: Any) -> Target:
    """Return the target that a configuration names; it may be the dictionary of a config.yaml."""
    flat = flatten(config)
    shown = {k: redacted(v) if isinstance(v, str) else v for k, v in flat.items()}
    project, entity = flat["track.project"], flat["track.entity"]
    return Target(run_id, project, entity, flat["track.name"] or name, shown)


def start(target: Target, mode: str, folder: Path, limit_s: float, **settings: Any) -> Any:
    """Start W&B and return its run, resumed if the server knows it.

    Args:
        mode: online or offline.
        folder: W&B makes its own, `wandb`, in it.
        limit_s: for uploading the rest when the run is finished.
        settings: further ones of W&B.
    Raises: whatever W&B does.
    """
    import wandb

    (folder / "wandb").mkdir(exist_ok=True)
    run = wandb.init(
        id=target.run_id,
        resume="allow" if mode == "online" else None,
        mode=mode,  # type: ignore[arg-type]
        dir=str(folder),
        project=target.project,
        entity=target.entity,
        name=target.name,
        config=target.config,
        allow_val_change=True,  # another attempt may have another micro_batch
        settings=wandb.Settings(
            silent=True,
            console="off",  # or every line that training logs waits for W&B's process
            init_timeout=START_LIMIT_S,
            finish_timeout=limit_s,
            finish_timeout_raises=True,
            x_disable_meta=True,  # it holds the command line, and a URL in it may hold a key
            **settings,
        ),
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run


def begin_service() -> None:
    """Start W&B's process, so that what must be done when this one ends can be registered after.

    W&B counts its own use, and at the end of a process that has no network retries to send that;
    and its debug log holds the API key. Neither is wanted, whatever the environment says. Nor is a
    traceback for every line that its log cannot write to a full disk.
    """
    logging.raiseExceptions = False
    for name in ("WANDB_ERROR_REPORTING", "WANDB_DEBUG", "WANDB_CORE_DEBUG"):
        os.environ[name] = "false"
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))


def end_service() -> None:
    """End W&B's process, which else would be waited for when this one ends.

    W&B raises SystemExit where its process ended badly.
    """
    import wandb

    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def held_step(run: Any) -> int:
    """Return the last train/step that the server holds of a resumed run, -1 for none.

    The number of its last line says so, unless that counts lines, as in runs of old.
    """
    last = int(run.starting_step) - 1
    summary = dict(run.summary)
    return int(summary[STEP]) if STEP in summary and summary.get("_step") == last else last


def reason_of(error: Exception) -> str:
    """Return what W&B says of a failure, on one line and without passwords of URLs."""
    return redacted(" ".join(str(error).split())) or type(error).__name__


def records_after(records: Iterable[dict[str, Any]], step: int) -> Iterator[dict[str, Any]]:
    """Yield the records of later steps, each step once and in order."""
    for record in records:
        if record[STEP] > step:
            step = record[STEP]
            yield record


def whole_lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the objects of the lines that follow; one without its end is left for later.

    Raises: DamagedFile at a line that is none: W&B would take it no more behind later ones.
    """
    while (line := file.readline()).endswith(b"\n"):
        try:
            record = parse_json(line, STEP)
        except ValueError as error:
            place = f"{file.name}: the line that ends at byte {file.tell()}"
            raise DamagedFile(f"{place} is damaged: {error}; mend or remove it") from error
        yield record
    file.seek(-len(line), os.SEEK_CUR)


class Mirror:
    """Keeps a W&B run like metrics.jsonl, and never lets training wait.

    Args:
        metrics: the file.
        target: the W&B run.
        mode: online or offline; where online fails, the attempt is written offline.
        folder: for W&B's files.
        last_step: what the file held when this attempt began; an offline segment begins behind it.
    """

    def __init__(
        self, metrics: Path, target: Target, mode: str, folder: Path, last_step: int
    ) -> None:
        self._metrics, self._target, self._folder = metrics, target, folder
        self._modes = ("online", "offline") if mode == "online" else (mode,)
        self._last_step, self._exit_code = last_step, CRASH
        self._grown, self._closing, self._left = (threading.Event() for _ in range(3))
        self._grown.set()  # by the attempts before
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
        self._thread.start()

    def grown(self) -> None:
        """Say that metrics.jsonl has grown."""
        self._grown.set()

    def finish(self, exit_code: int) -> None:
        """Send the rest and close the run; after FINISH_LIMIT_S leave it behind."""
        if self._closing.is_set():
            return
        self._exit_code = exit_code
        self._closing.set()
        self._grown.set()
        self._thread.join(FINISH_LIMIT_S)
        if self._thread.is_alive():
            logger.warning("W&B did not close within %g s; left behind: %s", FINISH_LIMIT_S, LATER)
            self._left.set()
            _kill_service()

    def _work(self) -> None:
        try:
            started = self._start()
            if started:
                self._follow(*started)
        except Exception as error:  # whatever it is, training goes on
            if not self._left.is_set():
                logger.warning("W&B stopped (%s); %s", reason_of(error), LATER)
        finally:
            atexit.unregister(self._at_exit)
            if not self._left.is_set():
                end_service()

    def _start(self) -> tuple[Any, int] | None:
        """Return W&B's run and the last step it holds, or None where no mode works."""
        for mode in self._modes:
            if self._left.is_set():
                break
            try:
                begin_service()
                atexit.unregister(self._at_exit)
                atexit.register(self._at_exit)  # after W&B's own, so it runs before that
                run = start(self._target, mode, self._folder, _UPLOAD_LIMIT_S)
                return run, held_step(run) if mode == "online" else self._last_step
            except Exception as error:  # network, space, key: the run does not depend on it
                if not self._left.is_set():
                    logger.warning("W&B is off in mode %s (%s); %s", mode, reason_of(error), LATER)
                    end_service()  # it would refuse the same id a second time
        return None

    def _follow(self, run: Any, step: int) -> None:
        """Send what metrics.jsonl holds behind `step`, and go on so until the end."""
        with contextlib.ExitStack() as stack:
            file = None
            closing = False
            while not closing:
                self._grown.wait()
                self._grown.clear()
                closing = self._closing.is_set()  # asked before the last look at the file
                if file is None and self._metrics.exists():
                    file = stack.enter_context(open(self._metrics, "rb"))
                for number, record in enumerate(records_after(_lines(file), step)):
                    run.log(record, step=record[STEP], commit=True)
                    step = record[STEP]
                    if number % _LINES_A_BREATH == 0:
                        self._closing.wait(_BREATH_S)
        run.finish(exit_code=self._exit_code)

    def _at_exit(self) -> None:
        """Close a run that nobody closed; W&B's own way would wait for a server for ever."""
        self.finish(CRASH)


def _lines(file: BinaryIO | None) -> Iterator[dict[str, Any]]:
    return whole_lines(file) if file else iter(())


def _kill_service() -> None:
    """End W&B's process by force, and the thread that waits for it."""
    import psutil

    children = []
    with contextlib.suppress(psutil.Error):
        children = [c for c in psutil.Process().children() if c.name() == "wandb-core"]
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.terminate()
    for child in psutil.wait_procs(children, timeout=_KILL_LIMIT_S / 2)[1]:
        with contextlib.suppress(psutil.Error):
            child.kill()
    closing = threading.Thread(target=end_service, daemon=True)
    closing.start()
    closing.join(_KILL_LIMIT_S / 2)
