"""Preparing a shard set on this machine: the stages in order, each in several processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fitb
from fitb.base import log, signals
from fitb.base.errors import ConfigError, DataError, SystemFault
from fitb.base.fsio import (
    folder_written_whole,
    naming_full_disk,
    read_json,
    sha256_json,
    write_json,
)
from fitb.base.job_states import ENDED
from fitb.cluster import slurm
from fitb.corpus import minhash
from fitb.corpus.clean import CleanConfig, Cleaner
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.sources import TextSource, plan
from fitb.corpus.stages import Task, stages_of, targets_of
from fitb.corpus.tokenizer import add_tokens, read_tokens, take_tokenizer
from fitb.corpus.work import (
    FOLDERS,
    GIVEN,
    JOBS,
    LAYOUT,
    PLAN,
    SETTINGS,
    TOKENIZER,
    Work,
    alone,
    check_place,
    clear_work,
    enter_work,
    folder_of,
    leave_work,
    place_of,
    read_plan,
)
from fitb.shards.manifest import FORMAT_VERSION, MANIFEST, read_manifest
from fitb.shards.tokenizer import tokenizer_fingerprint

# Paths may differ between two starts: texts and tokenizers are compared by their fingerprints.
_PATHS = ("files", "tokenizer", "add_tokens")
_NEWER = {"joiners", "lowercase", "strip_accents"}  # keys that the first sets of format 2 lack

logger = logging.getLogger(__name__)


def prepare(config: PrepareConfig) -> Path:
    """Make a shard set on this machine; do nothing if the folder already holds the same one.

    An interrupted preparation continues where it stopped.

    Returns: path of the manifest.
    Raises: DataError if there is no text, too little of it for two splits, an unsuitable tokenizer,
        another shard set in the folder, or another preparation at work; SystemFault if the disk is
        full or a worker was killed.
    """
    out = Path(config.out).absolute()
    with alone(config), naming_full_disk(out):
        work = begin(config)
        workers = config.workers or len(os.sched_getaffinity(0))
        try:
            for stage in stages_of(config):
                progress = log.ProgressLine(logger)
                try:
                    _run_stage(work, stage, workers, progress)
                finally:
                    progress.end()
        except (ConfigError, DataError):
            leave_work(work.folder)  # its input or settings must change
            raise
        leave_work(work.folder)
    return out / MANIFEST


def begin(config: PrepareConfig) -> Work:
    """Begin a preparation, or continue one of the same settings and input.

    Raises: ConfigError or DataError; then no new file is left.
    """
    folder = folder_of(config)
    check_place(place_of(config))
    _check_jobs(config, folder)
    Cleaner(config.clean)  # reports a missing library now rather than in a task
    enter_work(folder)
    if (folder / SETTINGS).exists():
        return _begin(config, folder, read_json(folder / SETTINGS))
    clear_work(folder)
    try:
        return _begin(config, folder, None)
    except BaseException:
        leave_work(folder)
        raise


def _check_jobs(config: PrepareConfig, folder: Path) -> None:
    """Raise DataError if Slurm jobs of this preparation are queued or running."""
    if not (folder / JOBS).exists() or not slurm.is_here():
        return
    name, job = list(read_json(folder / JOBS).items())[-1]
    state = slurm.job_state(job)
    if state not in ENDED:
        raise DataError(
            f"out={config.out} is being made by Slurm jobs (the last, {name}, is {job}: {state});"
            " wait until it ends, cancel them, or name another folder"
        )


def _begin(config: PrepareConfig, folder: Path, old: dict[str, Any] | None) -> Work:
    out = place_of(config)
    tokens = read_tokens(Path(config.add_tokens)) if config.add_tokens else []
    given = folder / GIVEN  # copied at every start, and compared with the copy in use
    shutil.rmtree(given, ignore_errors=True)
    if config.tokenizer is not None:
        with folder_written_whole(given) as scratch:
            take_tokenizer(config.tokenizer, scratch)
            if tokens:
                add_tokens(scratch, tokens)
    settings = _settings(config, given, tokens)
    if (out / MANIFEST).exists():
        _compare(read_manifest(out)["settings"], settings, f"out={out} holds a shard set")
    if old is not None:
        _compare(old["settings"], settings, f"{folder} holds an unfinished preparation")
    planned = plan(TextSource.of(vars(config)), split_mb=4 * config.shard_mb, max_mb=config.max_mb)
    as_begun = old is None or (old.get("layout"), read_plan(folder / PLAN)) == (LAYOUT, planned)
    if not as_begun:
        logger.warning("the input or fitb has changed since %s was begun; starting over", folder)
        for name in (*FOLDERS, *([TOKENIZER] if config.tokenizer is None else [])):
            shutil.rmtree(folder / name, ignore_errors=True)
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    if config.tokenizer is not None and not (folder / TOKENIZER).exists():
        given.rename(folder / TOKENIZER)
    shutil.rmtree(given, ignore_errors=True)
    units = asdict(planned)
    write_json(folder / PLAN, {"units": units.pop("splits"), **units})
    saved = {"out": str(out), "config": asdict(config), "settings": settings, "layout": LAYOUT}
    write_json(folder / SETTINGS, saved)
    return Work(folder, out, config, settings, planned)


def _settings(config: PrepareConfig, tokenizer: Path, tokens: list[str]) -> dict[str, Any]:
    """Return the settings for the manifest: all that decides the bytes, and the paths given."""
    settings = asdict(config)
    for name in ("out", "workers"):
        del settings[name]
    for keys, default in ((settings, PrepareConfig("")), (settings["clean"], CleanConfig())):
        for name in _NEWER & keys.keys():
            if keys[name] == getattr(default, name):
                del keys[name]  # so that sets made before the key existed compare equal
    given = config.tokenizer is not None
    settings["tokenizer_fingerprint"] = tokenizer_fingerprint(tokenizer) if given else None
    settings["added_tokens"] = sha256_json(tokens) if tokens else None
    if config.near_duplicates is not None:
        settings["near_duplicate_words"] = minhash.WORDS
    settings["fitb_version"] = fitb.__version__
    settings["format_version"] = FORMAT_VERSION
    return settings


def _compare(before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Raise DataError that names every setting that differs."""
    changed = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted((before.keys() | now.keys()) - set(_PATHS))
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise DataError(
            f"{what} of other settings ({'; '.join(changed)}); name a new folder, or remove this"
            " one"
        )


def _run_stage(work: Work, stage: str, workers: int, progress: log.ProgressLine) -> None:
    """Make the missing targets of a stage; raise SystemFault if a worker was killed."""
    targets = targets_of(work, stage)
    ranks = [rank for rank, target in enumerate(targets) if not target.is_made]

    def report(number: int) -> None:
        shown = [f"stage {stage}", f"task {number}/{len(ranks)}", f"{number / len(ranks):.0%}"]
        line = f"stage={stage} task={number}/{len(ranks)}"
        progress.tell(shown, line, last=number == len(ranks))

    if min(workers, len(targets)) <= 1:
        for number, rank in enumerate(ranks, 1):
            targets[rank].make()
            report(number)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fitb.corpus.prepare"])
    with ProcessPoolExecutor(min(workers, len(targets)), context, _begin_worker) as pool:
        try:
            with signals.held_back(signal.SIGINT):  # a half-started worker would never be joined
                tasks = [
                    pool.submit(Task(str(work.folder), stage, rank, len(targets))) for rank in ranks
                ]
            for number, task in enumerate(as_completed(tasks), 1):
                task.result()
                report(number)
        except BrokenProcessPool as error:
            raise SystemFault(
                f"a worker of stage {stage} was killed, perhaps for lack of memory; start the same"
                " command again, with fewer --workers or a smaller --shard_mb"
            ) from error
        except KeyboardInterrupt:
            logger.info("interrupted; running tasks are finished, the rest is left for next time")
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the main process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the main process is killed: nobody may write without the lock."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
