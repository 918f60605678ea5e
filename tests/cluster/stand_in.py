"""A job with the outside of `fitb train` and nothing inside: a step asks all ranks and sleeps.

It takes the same flags, leaves the same files, agrees on signals over the network in the same way
and ends with the same codes, but starts at once. The environment says how it misbehaves:
STAND_IN_CRASH_AT, STAND_IN_STOP_AT (steps), STAND_IN_STEP_S (seconds of a step, first attempt),
STAND_IN_DEAF_S (seconds before it catches signals).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from fitb.base.errors import CRASH, FINISHED, RESUME, STOP
from fitb.base.fsio import append_line
from fitb.base.world import World
from fitb.config import Config
from fitb.config.parser import parse
from fitb.rundir.checkpoints import last_committed_step


class Ranks:
    """All ranks of the job, joined to rank 0 at MASTER_ADDR:MASTER_PORT."""

    def __init__(self, world: World) -> None:
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        self._peers: list[Connection] = []
        if world.is_main:
            with Listener(("", address[1]), backlog=world.size) as listener:
                self._peers = [listener.accept() for _ in range(world.size - 1)]
            return
        deadline = time.monotonic() + 60
        while not self._peers:
            try:
                self._peers = [Client(address)]
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self._main = self._peers[0]

    def agree(self, world: World, flag: bool) -> bool:
        """Return whether any rank gave True; every rank gets the same answer."""
        if not world.is_main:
            self._main.send(flag)
            return bool(self._main.recv())
        answer = any([flag, *[peer.recv() for peer in self._peers]])
        for peer in self._peers:
            peer.send(answer)
        return answer


def train(config: Config, on_end: object = None) -> int:
    time.sleep(float(os.environ.get("STAND_IN_DEAF_S", "0")))
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: signals.append(number))
    world = World.from_env(os.environ)
    ranks = Ranks(world)
    run_dir = Path(config.run_dir)
    begin = last_committed_step(run_dir)
    ranks.agree(world, False)
    step_s = float(os.environ.get("STAND_IN_STEP_S", "0.1")) if begin == 0 else 0.05

    def event(name: str, step: int, **details: int) -> None:
        if world.is_main:
            run_dir.mkdir(parents=True, exist_ok=True)
            record = {"time": "", "event": name, "step": step, "world_size": world.size, **details}
            append_line(run_dir / "events.jsonl", record)

    def commit(step: int) -> None:
        if world.is_main:
            (run_dir / "checkpoints" / f"step-{step:07d}").mkdir(parents=True, exist_ok=True)
            (run_dir / "checkpoints" / "latest").write_text(f"step-{step:07d}")
        event("save", step)
        ranks.agree(world, False)

    event("attempt", begin)
    code, step = FINISHED, begin
    for step in range(begin, config.steps + 1):
        if ranks.agree(world, bool(signals)) or step == config.steps:
            code = FINISHED if step == config.steps else RESUME
            break
        if step == int(os.environ.get("STAND_IN_CRASH_AT", "-1")):
            return CRASH
        if step == int(os.environ.get("STAND_IN_STOP_AT", "-1")):
            return STOP
        time.sleep(step_s)
        if (step + 1) % (config.checkpoint.every_steps or 1000) == 0:
            commit(step + 1)
    commit(step)
    event("stop", step, exit_code=code)
    time.sleep(0.5 * world.rank)  # ranks never end at the same moment
    return code


if __name__ == "__main__":
    sys.exit(train(parse(Config, "stand_in", sys.argv[1:])))
