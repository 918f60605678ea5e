"""Mirror metrics.jsonl to Weights & Biases on a background thread.

The file is the queue: training appends a line and notifies the thread, which reads on from where it
was. Nothing is dropped and training never waits. At the start of an attempt the thread asks the
server for the last step that it has and continues after it, which also sends whatever earlier
attempts could not. The `_step` of a line in W&B is its train/step.
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

START_LIMIT_S = 30.0  # for the server's first response; then the attempt is written offline
FINISH_LIMIT_S = 20.0  # for everything left at the end, including a pending start
_UPLOAD_LIMIT_S = 15.0  # W&B's own limit for the upload, within FINISH_LIMIT_S
_KILL_LIMIT_S = 3.0  # for W&B's process to terminate
_BATCH_LINES, _PAUSE_S = 20, 0.02  # while catching up, release the GIL to training
LATER = "metrics.jsonl has all; the next attempt or `fitb sync` sends what is missing"


@dataclass(frozen=True)
class WandbRun:
    """Identity of a W&B run.

    Args:
        run_id: W&B id, one for all attempts.
        project: W&B project.
        entity: W&B user or team; None is the default one.
        name: display name.
        config: dotted key -> value.
        group: group of the run; None is none.
    """

    run_id: str
    project: str
    entity: str | None
    name: str
    config: dict[str, Any]
    group: str | None = None


def target_of(run_id: str, name: str, config: Any) -> WandbRun:
    """Return the W&B run of a configuration, which may be the dictionary of a config.yaml."""
    flat = flatten(config)
    shown = {k: redacted(v) if isinstance(v, str) else v for k, v in flat.items()}
    project, entity = flat["track.project"], flat["track.entity"]
    name, group = flat["track.name"] or name, flat.get("track.group")
    return WandbRun(run_id, project, entity, name, shown, group)


def start(target: WandbRun, mode: str, folder: Path, limit_s: float, **settings: Any) -> Any:
    """Start W&B and return its run, resumed if the server knows it.

    Args:
        target: W&B run.
        mode: online or offline.
        folder: parent of W&B's own folder `wandb`.
        limit_s: seconds for the upload when the run is finished.
        settings: further W&B settings.
    Raises: whatever W&B raises.
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
        group=target.group,
        config=target.config,
        allow_val_change=True,  # another attempt may have another micro_batch
        settings=wandb.Settings(
            silent=True,
            console="off",  # capturing it makes each log line wait for W&B's process
            init_timeout=START_LIMIT_S,
            finish_timeout=limit_s,
            finish_timeout_raises=True,
            x_disable_meta=True,  # contains the command line, whose URLs may hold a key
            **settings,
        ),
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run


def begin_service() -> None:
    """Start W&B's process first, so that our exit handler can be registered after W&B's own.

    Its telemetry retries at exit without a network, its debug log contains the API key, and on a
    full disk its logger prints a traceback per line: all three are turned off.
    """
    logging.raiseExceptions = False
    for name in ("WANDB_ERROR_REPORTING", "WANDB_DEBUG", "WANDB_CORE_DEBUG"):
        os.environ[name] = "false"
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))


def end_service() -> None:
    """Terminate W&B's process, so that nothing waits for it at exit.

    W&B raises SystemExit if its process failed.
    """
    import wandb

    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def held_step(run: Any) -> int:
    """Return the last train/step that the server has of a resumed run, -1 for none.

    It is the `_step` of the last line, except in old runs, where `_step` counted lines.
    """
    last = int(run.starting_step) - 1
    summary = dict(run.summary)
    return int(summary[STEP]) if STEP in summary and summary.get("_step") == last else last


def reason_of(error: Exception) -> str:
    """Return the message of a W&B error, on one line and with secrets in URLs redacted."""
    return redacted(" ".join(str(error).split())) or type(error).__name__


def records_after(records: Iterable[dict[str, Any]], step: int) -> Iterator[dict[str, Any]]:
    """Yield the records after `step`, each step once and in order."""
    for record in records:
        if record[STEP] > step:
            step = record[STEP]
            yield record


def whole_lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the objects of the complete lines that follow; an incomplete last line is not consumed.

    Raises: DamagedFile at a damaged line: W&B accepts no line after later ones.
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
    """Background thread that mirrors metrics.jsonl to a W&B run.

    Args:
        metrics: path of metrics.jsonl.
        target: W&B run.
        mode: online or offline; if online fails, the attempt is written offline.
        folder: folder of W&B's files.
        last_step: last step in the file when this attempt began; offline mode starts after it.
    """

    def __init__(
        self, metrics: Path, target: WandbRun, mode: str, folder: Path, last_step: int
    ) -> None:
        self._metrics, self._target, self._folder = metrics, target, folder
        self._modes = ("online", "offline") if mode == "online" else (mode,)
        self._last_step, self._exit_code = last_step, CRASH
        self._grown, self._closing, self._abandoned = (threading.Event() for _ in range(3))
        self._grown.set()  # earlier attempts have written lines
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
        self._thread.start()

    def grown(self) -> None:
        """Notify the thread that metrics.jsonl has grown."""
        self._grown.set()

    def finish(self, exit_code: int) -> None:
        """Send the rest and finish the W&B run; abandon it after FINISH_LIMIT_S."""
        if self._closing.is_set():
            return
        self._exit_code = exit_code
        self._closing.set()
        self._grown.set()
        self._thread.join(FINISH_LIMIT_S)
        if self._thread.is_alive():
            logger.warning("W&B did not finish within %g s: abandoned; %s", FINISH_LIMIT_S, LATER)
            self._abandoned.set()
            _kill_service()

    def _work(self) -> None:
        try:
            started = self._start()
            if started:
                self._follow(*started)
        except Exception as error:  # of any kind: training goes on
            if not self._abandoned.is_set():
                logger.warning("W&B stopped (%s); %s", reason_of(error), LATER)
        finally:
            atexit.unregister(self._at_exit)
            if not self._abandoned.is_set():
                end_service()

    def _start(self) -> tuple[Any, int] | None:
        """Return the W&B run and the last step that it has; None if no mode works."""
        for mode in self._modes:
            if self._abandoned.is_set():
                break
            try:
                begin_service()
                atexit.unregister(self._at_exit)
                atexit.register(self._at_exit)  # after W&B's own, so it runs before it
                run = start(self._target, mode, self._folder, _UPLOAD_LIMIT_S)
                return run, held_step(run) if mode == "online" else self._last_step
            except Exception as error:  # network, disk, API key: training goes on
                if not self._abandoned.is_set():
                    logger.warning("W&B is off in mode %s (%s); %s", mode, reason_of(error), LATER)
                    end_service()  # else W&B refuses the same id a second time
        return None

    def _follow(self, run: Any, step: int) -> None:
        """Send the lines of metrics.jsonl after `step` until the mirror is finished."""
        with contextlib.ExitStack() as stack:
            file, closing = None, False
            while not closing:
                self._grown.wait()
                self._grown.clear()
                closing = self._closing.is_set()  # read before the file, so no line is missed
                if file is None and self._metrics.exists():
                    file = stack.enter_context(open(self._metrics, "rb"))
                records = whole_lines(file) if file else iter(())
                for number, record in enumerate(records_after(records, step)):
                    run.log(record, step=record[STEP], commit=True)
                    step = record[STEP]
                    if number % _BATCH_LINES == 0:
                        self._closing.wait(_PAUSE_S)
        run.finish(exit_code=self._exit_code)

    def _at_exit(self) -> None:
        """Finish a run that was not closed; W&B's own handler could wait for a server forever."""
        self.finish(CRASH)


def _kill_service() -> None:
    """Kill W&B's process, which also ends the thread that waits for it."""
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
