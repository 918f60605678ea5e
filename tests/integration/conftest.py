"""Commands and the ranks of runs of these tests are forked where that shows the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import job
import pytest
from forked import Forked, can_fork, completed

from fitb.cluster import local


@pytest.fixture(scope="session", autouse=True)
def forked_ranks() -> Iterator[None]:
    started = local._start

    def start(
        command: Sequence[str], env: Mapping[str, str], output: IO[bytes] | None
    ) -> subprocess.Popen[bytes] | Forked:
        return (Forked if can_fork(command, env) else started)(command, env, output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_start", start)
        patch.setattr(job, "completed", completed)
        yield
