"""Two ranks save beside training, and one is killed after the n-th action of the save.

    python kill_points.py FOLDER

For every action of either rank, and with either rank as the victim: two processes save step 1, then
step 2, and the kill comes in the middle of step 2. Two others then enter the run. One JSON line a
case: actor, victim, action, and what both ranks of the next attempt chose.

The same for an export that replaces an older one, by an exchange of names and by two renames: one
JSON line a case with the way, the action and what RUN/export is when the next attempt has begun.
"""

from __future__ import annotations

import builtins
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from fitb.base import fsio
from fitb.base.errors import FitbError
from fitb.base.world import World
from fitb.cluster.local import hold_port
from fitb.config import Config
from fitb.model import exported
from fitb.model.fragments import key_of
from fitb.rundir import ownership
from fitb.rundir.writer import RunDir
from fitb.training import checkpoint, collectives
from fitb.training.saver import Saver
from fitb.training.stop import StopFlag

ACTIONS = [
    *((os, name) for name in ("mkdir", "rename", "replace", "fsync", "open", "rmdir", "unlink")),
    (builtins, "open"),
    (fsio, "rename"),
    (dist, "broadcast_object_list"),
    (dist, "all_gather_object"),
]


@dataclass
class State:
    """What a rank holds: half of each tensor, all values the step."""

    step: int
    rank: int

    def fragments(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.shapes():
            yield key_of(name, 4 * self.rank), torch.full((4,), float(self.step))

    def shapes(self) -> dict[str, list[int]]:
        kinds = ("param", "exp_avg", "exp_avg_sq")
        return {f"{kind}/{name}": [2, 4] for name in ("weight", "bias") for kind in kinds}


def save(run: RunDir, step: int, world: World) -> None:
    engine = SimpleNamespace(state=State(step, world.rank), world=world, device=torch.device("cpu"))
    stop = StopFlag()
    saver = Saver(run, engine, Config(""), 0, stop)  # type: ignore[arg-type]
    saver.save({"step": step}, ())
    saver.wait()
    stop.raise_failure()


def after_each(action: Callable[[str], None]) -> None:
    """Call `action` with the name of every action of this process from here, when it was done."""

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            action(name)
            return result

        return call

    for owner, name in ACTIONS:
        setattr(owner, name, wrapped(name, getattr(owner, name)))


def kill_after_each(n: int, pid: int, told: int) -> None:
    """Kill a process when this one has done its n-th action from here, which is told."""
    numbers = itertools.count(1)

    def acted(name: str) -> None:
        if next(numbers) == n:
            os.write(told, f"{name}\n".encode())
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    after_each(acted)


def enter(rank: int, port: int) -> World:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=10))
    return World(rank, 2)


def rank_of_a_case(
    rank: int, port: int, folder: Path, actor: int, victim: int, n: int, told: int
) -> None:
    """One rank: save three times, the last with the kill."""
    world = enter(rank, port)
    number = collectives.on_main(lambda: ownership.take(folder, {}), world)
    run = RunDir(folder, number, world)
    for step in (0, 1):
        save(run, step, world)
    pids = collectives.on_all(os.getpid, world)
    if rank == actor:
        kill_after_each(n, pids[victim], told)
    save(run, 2, world)
    os._exit(0)


def choices(port: int, rank: int, asked: int, answers: int) -> None:
    """A rank of every next attempt: for each folder asked about, tell what it enters."""
    world = enter(rank, port)
    with os.fdopen(asked) as lines:
        for line in lines:
            folder = Path(line.strip())
            try:
                collectives.on_main(lambda at=folder: ownership.take(at, {}), world)
                found = checkpoint.load(folder / "checkpoints", world)
                step, loaded = (found.manifest["step"], found.tensors) if found else (None, {})
                values = {float(tensor.unique()) for tensor in loaded.values()}
                answer = f"{step} {sorted(values)} {len(loaded)}"
            except FitbError as error:
                answer = repr(error)
            os.write(answers, f"{answer}\n".encode())
    os._exit(0)


def export(run: RunDir, step: int) -> None:
    with fsio.folder_written_whole(run.export, room=run.fence) as folder:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(f"{name} of {step}")
        exported.seal(folder, step)


def export_of_a_case(folder: Path, way: str, n: int, told: int) -> None:
    """Export twice, the last time with the kill."""
    if way == "two renames":
        real = fsio.rename
        fsio.rename = lambda *args: args[2] != fsio.EXCHANGE and real(*args)
    run = RunDir(folder, ownership.take(folder, {}), World())
    export(run, 1)
    kill_after_each(n, os.getpid(), told)
    export(run, 2)


def exports(folder: Path) -> None:
    """Every action of an export, by either way."""
    for way in ("exchange", "two renames"):
        for n in itertools.count(1):
            case = folder / f"{way}-{n}"
            case.mkdir()
            action = action_of([partial(export_of_a_case, case, way, n)])
            between = sorted(path.name for path in case.glob("export"))
            ownership.take(case, {})
            found = exported.damage(case / "export") or exported.step_of(case / "export")
            left = sorted(path.name for path in (case / "checkpoints").iterdir())
            line = {"way": way, "n": n, "action": action, "between": between, "left": left}
            print(json.dumps(line | {"found": found}), flush=True)
            if not action:
                break


def action_of(processes: list[Callable[[int], None]]) -> str:
    """Run processes to their end; return the action that was told, or "" where none was an n-th."""
    read, write = os.pipe()
    pids = [fork(process, write) for process in processes]
    os.close(write)
    for pid in pids:
        os.waitpid(pid, 0)
    with os.fdopen(read) as told:
        return told.read().strip()


def fork(function: Callable[..., None], *args: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*args)
    except BaseException as error:
        if os.environ.get("FITB_SHOW"):
            print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    exports(folder)
    held = hold_port()
    port = held.getsockname()[1]
    asking = [os.pipe() for _ in range(2)]
    telling = [os.pipe() for _ in range(2)]
    askers = [fork(choices, port, rank, asking[rank][0], telling[rank][1]) for rank in range(2)]
    told = [os.fdopen(read) for read, _ in telling]
    for actor, victim in ((0, 0), (0, 1), (1, 1)):
        for n in itertools.count(1):
            case = folder / f"{actor}-{victim}-{n}"
            case.mkdir()
            with hold_port() as held_for_case:
                place = (held_for_case.getsockname()[1], case, actor, victim, n)
                ranks = [partial(rank_of_a_case, rank, *place) for rank in range(2)]
                action = action_of(ranks)
            for rank in range(2):
                os.write(asking[rank][1], f"{case}\n".encode())
            chosen = [told[rank].readline().strip() for rank in range(2)]
            line = {"actor": actor, "victim": victim, "n": n, "action": action, "chosen": chosen}
            print(json.dumps(line), flush=True)
            if not action:  # the protocol has no n-th action: nothing was killed
                break
    for pid in askers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
