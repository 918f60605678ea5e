"""Orders of the filesystem calls of jobs that start one run at the same moment: who owns it?

    python tests/benchmarks/takeover_orders.py [--random N] [--module ownership.py]

The real code of `take` runs over a real folder, and stops before every call that it makes; the
order in which the calls are made is chosen: every order of two starters, every order of three with
at most four switches, random ones of three, and one starter killed at each call. (In the scenario
"zombie" the last of them is the old owner, which lives after all, and commits.) After each call at
most one fence may stand; in the end at most one starter owns the run, exactly one where who lives
is seen, and exactly one after another has tried again.

Of orders that differ in calls which commute, one is tried (sleep sets). Two calls commute unless
one changes a path, or what lies above it, that the other reads, lists or changes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from stopped_calls import Call, Gate, Killed, Starter

from fitb.rundir import ownership as real_ownership

SCENARIOS = ("fresh", "ended", "dead", "zombie", "gap")


class Broken(AssertionError):
    """An order in which two own the run, or none."""


class Contest:
    """A run at the moment before several start it, in one scenario.

    Args:
        several: how many; in "zombie" one of them is the owner that was given up for dead.
        seen: whether the starters find out who lives; otherwise everybody is given up for dead.
    """

    def __init__(self, gate: Gate, scenario: str, several: int, seen: bool) -> None:
        self.gate, self.scenario, self.seen = gate, scenario, seen
        self.run = Path(tempfile.mkdtemp(dir="/dev/shm"))
        gate.root, gate.living = str(self.run), set()
        (self.run / "checkpoints").mkdir()
        if scenario in ("ended", "dead", "zombie"):
            gate.module.take(self.run, {})
        if scenario == "ended":
            gate.module.release(self.run, 1)
        self.alike = {"gap": 1, "zombie": several - 1}.get(scenario, several)  # the first so many
        self.threads = [self._starter(i) for i in range(several)]
        if scenario == "zombie":
            self.threads[-1] = Starter(99, self._commit)
        for thread in self.threads:
            thread.step()

    def _starter(self, index: int) -> Starter:
        pid = 100 + index
        if self.seen:
            self.gate.living.add(pid)
        first = 1 + index if self.scenario == "gap" else 1
        return Starter(pid, lambda: self.gate.module.take(self.run, {}, first))

    def _commit(self) -> None:
        """What the owner that was given up for dead does: save, and save again."""
        for step in (1, 2):
            scratch = self.run / "checkpoints" / ".0001" / f"step-{step}"
            with contextlib.suppress(OSError):
                os.mkdir(scratch)
                os.rename(scratch, self.run / "checkpoints" / f"step-{step}")

    def pending(self) -> dict[int, Call]:
        return {i: t.pending for i, t in enumerate(self.threads) if t.pending and not t.killed}

    def step(self, index: int) -> None:
        """Make one call; where it changed something, look for two fences."""
        call = self.threads[index].pending
        self.threads[index].step()
        if call and call.writes:
            self.check()

    def kill(self, index: int) -> None:
        self.threads[index].kill()
        self.gate.living.discard(self.threads[index].pid)

    def fences(self) -> list[int]:
        found = [re.fullmatch(r"\.(\d+)", name) for name in os.listdir(self.run / "checkpoints")]
        return [int(match[1]) for match in found if match]

    def owners(self) -> list[Starter]:
        fences = self.fences()
        return [t for t in self.threads if t.number in fences and not t.killed]

    def check(self) -> None:
        if len(self.fences()) > 1:
            raise Broken(f"two fences: {self.fences()}")

    def finish(self) -> None:
        """Check what came out when all calls were made, then let those that lost try again."""
        allowed = (real_ownership.RunTaken, real_ownership.Replaced, Killed)
        for thread in self.threads:
            if thread.error and type(thread.error).__name__ not in {a.__name__ for a in allowed}:
                raise Broken(f"starter ended with {thread.error!r}") from thread.error
        killed = any(thread.killed for thread in self.threads)
        owners, exact = self.owners(), self.seen and not killed and self.scenario != "gap"
        if len(owners) > 1 or (exact and len(owners) != 1):
            raise Broken(f"{len(owners)} owners")
        for again in range(2):  # whoever owns it lives, then it does not
            before = self.owners()
            retry = Starter(200 + again, lambda: self.gate.module.take(self.run, {}))
            self.gate.living |= {retry.pid} if self.seen else set()
            retry.step()
            self.threads.append(retry)
            while retry.pending:
                self.step(-1)
            refused = self.seen and bool(before)
            if self.owners() != (before if refused else [retry]):
                raise Broken(f"after a retry: {retry.number} {retry.error!r}, {self.owners()}")
            for owner in self.owners() if again == 0 else ():
                self.gate.living.discard(owner.pid)
                owner.killed = True

    def close(self) -> None:
        for thread in self.threads:
            thread.kill()
        shutil.rmtree(self.run)


@dataclasses.dataclass
class Node:
    """One choice of who goes next, in a search of all orders."""

    pending: dict[int, Call]
    chosen: int
    sleep: dict[int, Call]  # starters whose next call was tried before, and commutes with all since
    done: dict[int, Call]
    switches: int

    def open(self, last: int | None, most: int | None) -> list[int]:
        """Who may still be tried here; `last` is who went before, and first where it may."""
        tired = most is not None and self.switches >= most and last in self.pending
        left = [last] if tired else sorted(self.pending, key=lambda i: i != last)
        return [i for i in left if i not in self.sleep and i not in self.done]


def every_order(make: Callable[[], Contest], most_switches: int | None = None) -> tuple[int, int]:
    """Try every order, each class of equal ones once; return how many, and how many calls.

    Args:
        most_switches: from one starter to another, the end of one included, after which nobody is
            interrupted any more; None is any number. Where it is given no order is left out for
            being equal to another, but for the names of starters: of those that do the same and
            have not begun, the first begins.
    Raises: Broken
    """
    path: list[Node] = []
    orders = calls = 0
    while True:
        contest, depth, sleep, last = make(), 0, {}, None
        switches, begun = 0, set[int]()
        try:
            while pending := contest.pending():
                if depth == len(path):
                    if most_switches is not None:
                        idle = [i for i in pending if i < contest.alike and i not in begun]
                        pending = {i: c for i, c in pending.items() if i not in idle[1:]}
                    node = Node(pending, -1, sleep, {}, switches)
                    choices = node.open(last, most_switches)
                    if not choices:
                        break
                    node.chosen = choices[0]
                    path.append(node)
                node = path[depth]
                call = pending[node.chosen]
                if most_switches is None:
                    seen = {**node.sleep, **node.done}
                    sleep = {i: c for i, c in seen.items() if c.commutes(call)}
                switches += last not in (None, node.chosen)
                last, depth, calls = node.chosen, depth + 1, calls + 1
                begun.add(node.chosen)
                contest.step(node.chosen)
            else:
                contest.finish()
                orders += 1
        except Broken as error:
            raise Broken(f"{error} after\n{told(path)}") from error
        finally:
            contest.close()
        while path:
            node = path[-1]
            node.done[node.chosen] = node.pending[node.chosen]
            before = path[-2].chosen if len(path) > 1 else None
            choices = node.open(before, most_switches)
            if choices:
                node.chosen = choices[0]
                break
            path.pop()
        else:
            return orders, calls


def told(path: list[Node]) -> str:
    return "\n".join(f"  {node.chosen}: {node.pending[node.chosen]}" for node in path)


def random_order(contest: Contest, rng: random.Random, kill: bool) -> None:
    """Make all calls in a random order, in stretches; kill a starter somewhere, if asked to.

    Raises: Broken
    """
    trace, last, patience = [], -1, rng.choice((0.0, 0.5, 0.8, 0.95))
    deadline = rng.randrange(60) if kill else None
    try:
        while pending := contest.pending():
            if last not in pending or rng.random() >= patience:
                last = rng.choice(sorted(pending))
            trace.append(f"  {last}: {pending[last]}")
            if len(trace) == deadline:
                contest.kill(last)
            else:
                contest.step(last)
        contest.finish()
    except Broken as error:
        raise Broken(f"{error} after\n" + "\n".join(trace)) from error
    finally:
        contest.close()


def killed_at_every_call(make: Callable[[], Contest]) -> int:
    """Kill the first starter before each of its calls, then let the others go on.

    Returns: how many calls it has.
    Raises: Broken where whoever comes next does not own the run.
    """
    for moment in itertools.count():
        contest = make()
        try:
            for _ in range(moment):
                if 0 in contest.pending():
                    contest.step(0)
            if 0 not in contest.pending():
                return moment
            contest.kill(0)
            while pending := contest.pending():
                contest.step(min(pending))
            contest.finish()
        finally:
            contest.close()
    raise AssertionError


def load(path: Path) -> ModuleType:
    """Another version of ownership.py."""
    spec = importlib.util.spec_from_file_location("other_attempt", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def prove(module: ModuleType, scenario: str, seen: bool, args: argparse.Namespace) -> None:
    """Try all kinds of orders in one scenario, and print how many there were.

    Raises: Broken
    """
    about = f"{scenario}, {'who lives is seen' if seen else 'all are given up for dead'}"
    if args.exhaust:
        with Gate(module).installed() as gate:
            orders, calls = every_order(lambda: Contest(gate, scenario, 2, seen))
            print(f"{about}: all {orders:,} orders of two, {calls:,} calls", flush=True)
            orders, calls = every_order(lambda: Contest(gate, scenario, 3, seen), 4)
            print(f"{about}: {orders:,} orders of three, at most 4 switches", flush=True)
    with Gate(module, every_call=True).installed() as gate:
        calls = killed_at_every_call(lambda: Contest(gate, scenario, 2, seen))
        print(f"{about}: killed at {calls} calls", flush=True)
        rng = random.Random(f"{args.seed} {about}")
        several = 4 if scenario == "zombie" else 3
        for i in range(args.random):
            random_order(Contest(gate, scenario, several, seen), rng, kill=bool(i % 2))
        print(f"{about}: {args.random:,} random orders of three, half with a kill", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--random", type=int, default=10_000, help="orders of each scenario")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=SCENARIOS, nargs="*", default=SCENARIOS)
    parser.add_argument("--exhaust", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--module", type=Path, help="another ownership.py than this tree's")
    args = parser.parse_args()
    module = load(args.module) if args.module else real_ownership
    for scenario, seen in itertools.product(args.only, (True, False)):
        try:
            prove(module, scenario, seen, args)
        except Broken as error:
            print(f"{scenario}: BROKEN, {error}", flush=True)


if __name__ == "__main__":
    main()
