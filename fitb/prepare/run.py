"""The stages of a preparation in order, under datatrove's executors: local processes or Slurm.

datatrove records which tasks are done, so a second start runs the others; the tasks themselves pass
over what is there. Its local executor waits for ever when a worker is killed, so ours takes the
place of its `run`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.utils.logging import logger as datatrove_logger

from fitb import log
from fitb.corpus.minhash import bands, bucket_step
from fitb.errors import ConfigError, DataError, SystemFault
from fitb.fsio import naming_full_disk
from fitb.prepare import stages
from fitb.prepare.config import PrepareConfig
from fitb.prepare.place import leave, leave_work, lock_of, take
from fitb.prepare.work import Work, begin
from fitb.shards.manifest import MANIFEST

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A step of the preparation.

    Args:
        name: of its record and its logs.
        step: for datatrove: called with (data, rank, world_size).
        tasks: how many there are at most; None is as many as there are input splits or shards.
    """

    name: str
    step: Callable[..., Any]
    tasks: int | None


def stages_of(work: Work) -> list[Stage]:
    """Return the stages of a preparation in order."""
    here = work.folder
    near = work.config.near_duplicates
    between: list[Stage] = []
    if near is not None:
        between = [
            Stage("sign", partial(stages.sign, here), None),
            Stage("buckets", bucket_step(here / "minhash", near), bands(near)[0]),
            Stage("cluster", partial(stages.cluster, here), 1),
        ]
    return [
        Stage("read", partial(stages.read, here), None),
        *between,
        Stage("tokenizer", partial(stages.tokenizer, here), 1),
        Stage("write", partial(stages.write, here), None),
        Stage("finish", partial(stages.finish, here), 1),
    ]


def prepare(config: PrepareConfig) -> Path:
    """Make a shard set on this machine; do nothing where the folder already holds the same one.

    An interrupted preparation goes on where it was.

    Returns: path of the manifest.
    Raises: DataError where there is no text, too little of it for two splits, a tokenizer that
        does not fit, another shard set in the folder, or another preparation at work; SystemFault
        where the disk is full or a worker was killed.
    """
    out = Path(config.out).absolute()
    lock = lock_of(config)
    take(lock, config)
    try:
        with naming_full_disk(out):
            work = begin(config)
            try:
                _run(work)
            except (ConfigError, DataError):
                leave_work(work.folder)  # its input or settings must change
                raise
            leave_work(work.folder)
    finally:
        leave(lock)
    return out / MANIFEST


def _run(work: Work) -> None:
    workers = work.config.workers or len(os.sched_getaffinity(0))
    datatrove_logger.disable("datatrove")
    for stage in stages_of(work):
        pieces = work.plan.splits if stage.name == "read" else work.shards
        tasks = stage.tasks or len(pieces)
        folder = work.folder / "stages" / f"{stage.name}-{tasks}"
        _Local(stage, tasks=tasks, workers=min(workers, tasks), logging_dir=str(folder)).run()
        if stage.name == "read" and work.is_made():
            logger.info("out=%s already holds this shard set; nothing to do", work.out)
            return


class _Local(LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's local executor, which here notices the death of a worker."""

    def __init__(self, stage: Stage, **settings: Any) -> None:
        super().__init__([stage.step], **settings)
        self._name = stage.name

    def run(self) -> None:
        """Run the tasks that are not done.

        Raises: what a task raised; SystemFault where a worker was killed.
        """
        ranks = self.get_incomplete_ranks()
        progress = log.Progress(logger)
        try:
            self._run_tasks(ranks, progress)
        finally:
            progress.end()

    def _run_tasks(self, ranks: list[int], progress: log.Progress) -> None:
        if self.workers == 1:
            for number, rank in enumerate(ranks, 1):
                self._run_for_rank(rank, 1)
                self._tell(progress, number, len(ranks))
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fitb.prepare.run"])
        with ProcessPoolExecutor(self.workers, context, _begin_worker) as pool:
            tasks = [pool.submit(self._run_for_rank, rank, 1) for rank in ranks]
            try:
                for number, task in enumerate(as_completed(tasks), 1):
                    task.result()
                    self._tell(progress, number, len(ranks))
            except BrokenProcessPool as error:
                raise SystemFault(
                    f"a worker of stage {self._name} was killed, perhaps for its memory; start the"
                    " same command again, with fewer --workers or a smaller --shard_mb"
                ) from error
            except KeyboardInterrupt:
                logger.info("interrupted; the tasks at work end first, the rest is for next time")
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _tell(self, progress: log.Progress, number: int, of: int) -> None:
        shown = [f"stage {self._name}", f"task {number}/{of}", f"{number / of:.0%}"]
        plain = f"stage={self._name} task={number}/{of}"
        progress.tell(shown, plain, last=number == of)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command, which ends in order
    log.setup()
    datatrove_logger.disable("datatrove")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the command is killed, so that its lock is free in truth."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
