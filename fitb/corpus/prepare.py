"""A preparation on this machine: the stages in order, each in several processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from fitb.base import log
from fitb.base.errors import ConfigError, DataError, SystemFault
from fitb.base.fsio import naming_full_disk
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.stages import Task, stages_of, targets_of
from fitb.corpus.work import Work, begin
from fitb.corpus.work_lock import alone, leave_work
from fitb.shards.manifest import MANIFEST

logger = logging.getLogger(__name__)


def prepare(config: PrepareConfig) -> Path:
    """Make a shard set on this machine; do nothing where the folder already holds the same one.

    An interrupted preparation goes on where it was.

    Returns: path of the manifest.
    Raises: DataError where there is no text, too little of it for two splits, a tokenizer that
        does not fit, another shard set in the folder, or another preparation at work; SystemFault
        where the disk is full or a worker was killed.
    """
    out = Path(config.out).absolute()
    with alone(config), naming_full_disk(out):
        work = begin(config)
        try:
            _run(work)
        except (ConfigError, DataError):
            leave_work(work.folder)  # its input or settings must change
            raise
        leave_work(work.folder)
    return out / MANIFEST


def _run(work: Work) -> None:
    workers = work.config.workers or len(os.sched_getaffinity(0))
    for stage in stages_of(work.config):
        progress = log.Progress(logger)
        try:
            _run_stage(work, stage, workers, progress)
        finally:
            progress.end()


def _run_stage(work: Work, stage: str, workers: int, progress: log.Progress) -> None:
    """Make the targets of a stage that are missing.

    Raises: what making one raised; SystemFault where a worker was killed.
    """
    targets = targets_of(work, stage)
    ranks = [rank for rank, target in enumerate(targets) if not target.is_made]
    if min(workers, len(targets)) <= 1:
        for number, rank in enumerate(ranks, 1):
            targets[rank].make()
            _tell(progress, stage, number, len(ranks))
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fitb.corpus.prepare"])
    with ProcessPoolExecutor(min(workers, len(targets)), context, _begin_worker) as pool:
        tasks = [pool.submit(Task(str(work.folder), stage, rank, len(targets))) for rank in ranks]
        try:
            for number, task in enumerate(as_completed(tasks), 1):
                task.result()
                _tell(progress, stage, number, len(ranks))
        except BrokenProcessPool as error:
            raise SystemFault(
                f"a worker of stage {stage} was killed, perhaps for its memory; start the same"
                " command again, with fewer --workers or a smaller --shard_mb"
            ) from error
        except KeyboardInterrupt:
            logger.info("interrupted; the tasks at work end first, the rest is for next time")
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _tell(progress: log.Progress, stage: str, number: int, of: int) -> None:
    shown = [f"stage {stage}", f"task {number}/{of}", f"{number / of:.0%}"]
    progress.tell(shown, f"stage={stage} task={number}/{of}", last=number == of)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command, which ends in order
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the command is killed, so that its lock is free in truth."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
