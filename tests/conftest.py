"""What tests share: shards, a teacher, flags of a quick run, a small disk."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import make_shards, make_teacher, mounted, quick

# Programs that prove our claims; tests run them in short.
sys.path.append(str(Path(__file__).parent / "benchmarks"))
# A shell starts what it puts into the background deaf to Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers and ranks share the cores, and a team of threads waits for its member that has none:
# test_numerics took 47 s by itself and 636 s among others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.pop("WANDB_API_KEY", None)  # no test may reach a real account
os.environ["FITB_SITE"] = os.devnull  # nor follow the settings of the site that it runs on


@pytest.fixture(autouse=True)
def own_log():
    """A command that a test calls logs to that test's stderr, which is closed after it."""
    logger = logging.getLogger("fitb")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory):
    """Fill a folder that all workers of a session read: the first that asks for its name does."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name, fill):
        with open(base / f"{name}.lock", "a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.fstat(lock.fileno()).st_size:
                (base / name).mkdir()
                fill(base / name)
                lock.write("made")
        return base / name

    return once


@pytest.fixture(scope="session")
def shards(make_once):
    """As `make_shards` makes them."""
    return make_once("corpus", make_shards) / "shards"


@pytest.fixture(scope="session")
def teacher(shards, make_once):
    """As `make_teacher` makes it."""
    return make_once("models", lambda folder: make_teacher(folder, shards)) / "teacher"


@pytest.fixture(scope="session")
def quick_flags(shards, teacher):
    """Flags of a run that distils 24 steps in a few seconds on a CPU; --run_dir is the caller's."""
    return quick(shards, teacher)


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 2 MB."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as folder:
        yield folder
