"""Starters of a run that stop before each of their filesystem calls.

A starter is a greenlet. While a gate is installed, the functions of `os` give control back before
they act, saying what they are about to do; `step` makes the call and goes on to the next. Calls
within the scratch folder of a starter are its own, and it stops before them only if asked to.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from greenlet import getcurrent, greenlet

CALLS = (
    *("open", "stat", "lstat", "listdir", "scandir", "mkdir", "rename", "replace", "rmdir"),
    *("unlink", "utime", "truncate", "fsync"),
)
READS, LISTS = ("stat", "lstat"), ("listdir", "scandir")
SHARED = ("attempts", "checkpoints")
SCRATCH = "checkpoints/.claim-"


class Killed(BaseException):
    """What every further call of a killed starter raises, and does nothing."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A filesystem call that is about to be made, with its paths below the run."""

    name: str
    reads: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def private(self) -> bool:
        paths = self.reads + self.lists + self.writes
        return all(path.startswith(SCRATCH) for path in paths)

    def commutes(self, other: Call) -> bool:
        return not (self._disturbs(other) or other._disturbs(self))

    def _disturbs(self, other: Call) -> bool:
        for path in self.writes:
            if any(_above(path, p) for p in other.reads + other.lists):
                return True
            if any(_above(path, p) or _above(p, path) for p in other.writes):
                return True
            if os.path.dirname(path) in other.lists and not path.startswith(SCRATCH):
                return True
        return False


def _above(path: str, other: str) -> bool:
    return other == path or other.startswith(path + "/")


class Starter(greenlet):
    """A start of the run that stops before each filesystem call."""

    def __init__(self, pid: int, action: Callable[[], int | None]) -> None:
        super().__init__(self._act)
        self.pid, self._action = pid, action
        self.pending: Call | None = None
        self.number: int | None = None  # of the attempt that it took
        self.error: BaseException | None = None
        self.killed = False

    def _act(self) -> None:
        try:
            self.number = self._action()
        except BaseException as error:
            self.error = error

    def stop_before(self, call: Call) -> None:
        if not self.killed:
            self.pending = call
            self.parent.switch()
        if self.killed:
            raise Killed

    def step(self) -> None:
        """Make the pending call and all that follows it until the next."""
        self.pending = None
        self.switch()

    def kill(self) -> None:
        """End it where it stands; what it would do to clean up is not done."""
        self.killed = True
        if self:
            self.step()


def running() -> Starter | None:
    """The starter that makes a call, if it is one."""
    me = getcurrent()
    return me if isinstance(me, Starter) else None


class Gate:
    """The functions of `os`, stopping starters before they act.

    Args:
        module: of `take`.
        every_call: stop also before calls that are the starter's own.
    """

    def __init__(self, module: ModuleType, every_call: bool = False) -> None:
        self.module, self.every_call = module, every_call
        self.living: set[int] = set()  # processes that a look at them would find
        self.root = ""
        self._readlink = os.readlink

    @contextlib.contextmanager
    def installed(self) -> Iterator[Gate]:
        owners: list[tuple[Any, str]] = [(os, name) for name in CALLS if name != "open"]
        owners += [(os, "open"), (builtins, "open"), (io, "open")]
        saved = [(owner, name, getattr(owner, name)) for owner, name in owners]
        own = {
            "_runs": lambda owner: owner.pid in self.living,
            "_started": lambda pid: 0.0,
        }
        saved += [(self.module, name, getattr(self.module, name)) for name in own]
        saved += [(os, "getpid", os.getpid)]
        getpid = os.getpid
        try:
            for owner, name, function in saved[: len(owners)]:
                setattr(owner, name, self._stopping(name, function))
            for name, replacement in own.items():
                setattr(self.module, name, replacement)
            os.getpid = lambda: it.pid if (it := running()) else getpid()
            yield self
        finally:
            for owner, name, function in saved:
                setattr(owner, name, function)

    def _stopping(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            me = running()
            if me:
                about = self._about(name, args, kwargs)
                if about and (self.every_call or not about.private()):
                    me.stop_before(about)
            return function(*args, **kwargs)

        return call

    def _about(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """What a call is about to do; None where that is nothing to the run."""
        first = self._path(args[0] if args else ".", kwargs.get("dir_fd"))
        if first is None:
            return None
        if name in ("rename", "replace"):
            return Call(name, writes=(first, self._path(args[1], None) or ""))
        if name in LISTS:
            return Call(name, reads=(first,), lists=(first,))
        if name in READS or name == "fsync":
            return Call(name, reads=(first,) if name in READS else ())
        if name == "open":
            how = args[1] if len(args) > 1 else kwargs.get("mode", "r")
            made = (
                how & (os.O_CREAT | os.O_WRONLY) if isinstance(how, int) else set(how) & set("wax+")
            )
            return Call(name, writes=(first,)) if made else Call(name, reads=(first,))
        if name == "mkdir" and first in SHARED and os.path.isdir(f"{self.root}/{first}"):
            return Call(name)  # it changes nothing, and nobody removes them
        return Call(name, writes=(first,))

    def _path(self, path: Any, dir_fd: int | None) -> str | None:
        if isinstance(path, int):
            path = self._readlink(f"/proc/self/fd/{path}")
        elif dir_fd is not None:
            path = os.path.join(self._readlink(f"/proc/self/fd/{dir_fd}"), os.fspath(path))
        path = os.fspath(path)
        inside = path.startswith(self.root + "/")
        return path[len(self.root) + 1 :] if inside else None
