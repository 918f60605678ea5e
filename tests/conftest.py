"""What tests share: shards, a teacher, flags of a quick run, a small disk."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small import make_shards, make_teacher, quick

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
def own_log() -> Iterator[None]:
    """A command that a test calls logs to that test's stderr, which is closed after it."""
    logger = logging.getLogger("fitb")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make_shards` makes them."""
    return make_shards(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def teacher(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make_teacher` makes it."""
    return make_teacher(tmp_path_factory.mktemp("models"), shards)


@pytest.fixture(scope="session")
def quick_flags(shards: Path, teacher: Path) -> list[str]:
    """Flags of a run that distils 24 steps in a few seconds on a CPU; --run_dir is the caller's."""
    return quick(shards, teacher)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small filesystem needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
