"""Commands and the ranks of runs of these tests are forked where that shows the same."""

from __future__ import annotations

import job
import pytest
from forked import Forked, can_fork, completed

from fitb.cluster import local


@pytest.fixture(scope="session", autouse=True)
def forked_ranks():
    started = local._start

    def start(command, env, output):
        return (Forked if can_fork(command, env) else started)(command, env, output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_start", start)
        patch.setattr(job, "completed", completed)
        yield
