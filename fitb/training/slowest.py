"""Which rank all others wait for, from the work that each does before gradients meet.

The ranks of a step wait for each other where gradients are reduced, so the time of a whole step is
the same on all of them; what differs is the time from its begin to there. Under ZeRO 3, and with an
offloaded optimiser, layers already wait for each other before that, and the difference is hidden.
"""

from __future__ import annotations

import logging
import socket
import statistics
from collections.abc import Sequence

from fitb.base.world import World
from fitb.rundir.writer import RunDir
from fitb.training.collectives import on_all

logger = logging.getLogger(__name__)
BEHIND = 1.1  # of the median of the others: slow
FOR_S = 30.0  # in every interval since, at least two: named
AGAIN_S = 600.0  # before it is named again


class Slowest:
    """Compares the ranks' own work at every logged step. Collective: it asks for their hosts.

    Args:
        run: where an event names a slow host.
        world: rank and world size of this process.
    """

    def __init__(self, run: RunDir, world: World) -> None:
        self._run, self._hosts = run, on_all(socket.gethostname, world)
        self._suspect, self._intervals, self._for_s = -1, 0, 0.0
        self._named_for_s = -AGAIN_S

    def compare(self, work_s: Sequence[float], steps: int, interval_s: float) -> dict[str, float]:
        """Return by how much the slowest rank is behind the median of the others, and which it is.

        Args:
            work_s: seconds of own work in these steps, of each rank.
            steps: steps since the last call.
            interval_s: seconds since then.
        Returns: `perf/slowest_rank_ms` of a step, and `perf/slowest_rank`; empty for one rank.
        """
        if len(work_s) < 2:
            return {}
        slowest = max(range(len(work_s)), key=work_s.__getitem__)
        others_s = statistics.median(s for rank, s in enumerate(work_s) if rank != slowest)
        behind_ms = 1e3 * (work_s[slowest] - others_s) / steps
        self._watch(slowest, work_s[slowest] / max(others_s, 1e-9), behind_ms, interval_s)
        return {"perf/slowest_rank_ms": behind_ms, "perf/slowest_rank": float(slowest)}

    def _watch(self, rank: int, ratio: float, behind_ms: float, interval_s: float) -> None:
        if ratio < BEHIND or rank != self._suspect:
            self._suspect, self._intervals, self._for_s = rank, 0, 0.0
            self._named_for_s = -AGAIN_S
        if ratio < BEHIND:
            return
        self._intervals, self._for_s = self._intervals + 1, self._for_s + interval_s
        lasts = self._intervals >= 2 and self._for_s >= FOR_S
        if lasts and self._for_s - self._named_for_s >= AGAIN_S:
            self._named_for_s = self._for_s
            host, percent = self._hosts[rank], round(100 * (ratio - 1))
            logger.warning(
                "rank %d on %s has been %d %% slower than the others for %d s: all ranks wait"
                " %.0f ms a step for it",
                *(rank, host, percent, self._for_s, behind_ms),
            )
            seconds, ms = round(self._for_s, 1), round(behind_ms, 1)
            self._run.event(
                "slow_host", rank=rank, host=host, percent=percent, ms=ms, seconds=seconds
            )
