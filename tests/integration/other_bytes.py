"""Two ranks train and evaluate, and one file of rank 1 holds other bytes than that of rank 0.

    python other_bytes.py FOLDER SHARDS TEACHER [flags of fitb train]

Rank 1 has a mount namespace of its own, where the file of each case lies under another one; the
process group stays from case to case. Each rank leaves FOLDER/answers-RANK.jsonl: of each case the
exit code and the errors that it logged.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch.distributed as dist

from fitb.base.errors import FitbError
from fitb.base.world import World
from fitb.config import Config
from fitb.config.parser import parse
from fitb.evaluation.data_parallel import Ranks
from fitb.evaluation.evaluate import evaluate
from fitb.evaluation.evaluate_config import EvaluateConfig
from fitb.training import liveness, loop
from fitb.training.loop import train

_NEW_NAMESPACE, _BIND, _DETACH = 0x20000, 4096, 2  # of linux/sched.h and sys/mount.h
_PRIVATE_BELOW = 0x44000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def may_mount() -> bool:
    """Whether this user may have a mount namespace; asked in a child."""
    child = os.fork()
    if child == 0:
        os._exit(_libc.unshare(_NEW_NAMESPACE) and 1)
    return os.waitpid(child, 0)[1] == 0


@contextlib.contextmanager
def other_bytes(path: Path, change: Callable[[bytes], bytes], folder: Path) -> Iterator[None]:
    """Let this process, and no other, find something else under a name."""
    other = folder / f"other-{path.name}"
    other.write_bytes(change(path.read_bytes()))
    _call("mount", bytes(other), bytes(path), None, _BIND, None)
    try:
        yield
    finally:
        _call("umount2", bytes(path), _DETACH)


def flipped(data: bytes) -> bytes:
    """The same but for a bit of what lies well behind the head."""
    place = len(data) * 3 // 4
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def other_setting(data: bytes) -> bytes:
    """A manifest that is right in itself, of shards that were prepared in another way."""
    return json.dumps({**json.loads(data), "settings": {}}).encode()


def one_row_less(data: bytes) -> bytes:
    manifest = json.loads(data)
    manifest["shards"][0]["rows"] -= 1
    return json.dumps(manifest).encode()


def other_word(data: bytes) -> bytes:
    content = json.loads(data)
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    return json.dumps(content).encode()


class Cases:
    """What a rank does, and writes down.

    Args:
        world: this process's place.
        folder: of the answers and of what rank 1 reads.
    """

    def __init__(self, world: World, folder: Path) -> None:
        self._world, self._folder = world, folder
        self._answers = open(folder / f"answers-{world.rank}.jsonl", "w")  # noqa: SIM115
        self._logged: list[str] = []
        handler = logging.Handler(logging.ERROR)
        handler.emit = lambda record: self._logged.append(record.getMessage())  # type: ignore[method-assign]
        for name in (loop.__name__, __name__):
            logging.getLogger(name).addHandler(handler)

    def case(
        self,
        name: str,
        work: Callable[[], int],
        paths: Iterable[Path] = (),
        change: Callable[[bytes], bytes] = flipped,
    ) -> None:
        """Do something on all ranks, rank 1 with other bytes under `paths`."""
        self._logged.clear()
        if dist.is_initialized():
            dist.barrier()
        with contextlib.ExitStack() as stack:
            for path in paths if self._world.rank == 1 else ():
                stack.enter_context(other_bytes(path, change, self._folder))
            code = work()
        answer = {"case": name, "code": code, "errors": self._logged}
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def evaluation(shards: Path, teacher: Path, world: World) -> int:
    config = EvaluateConfig(model=str(teacher), shards=str(shards), rows=8, baselines=False)
    try:
        evaluate(config, Ranks(world))
    except FitbError as error:
        logging.getLogger(__name__).error("%s", error)
        return error.exit_code
    return 0


def main(folder: Path, shards: Path, teacher: Path, flags: list[str]) -> None:
    loop.leave_distributed = lambda: None  # the next case needs it
    liveness.Watch.outlive_main = lambda watch: None  # and no process ends before
    world = World.from_env(os.environ)
    if world.rank == 1:
        _call("unshare", _NEW_NAMESPACE)
        _call("mount", b"none", b"/", None, _PRIVATE_BELOW, None)
    ranks, run, student = Cases(world, folder), folder / "run", folder / "student"
    if world.is_main:
        shutil.copytree(teacher, student)

    def training(run_dir: Path, *more: str) -> int:
        return train(parse(Config, "fitb train", [*flags, *more, "--run_dir", str(run_dir)]))

    def asked(at: Path, source: Path, to: Path) -> int:
        """Train where rank 0 has moved a folder before."""
        if world.is_main:
            source.rename(to)
        dist.barrier()
        return training(at)

    ranks.case("good", lambda: training(run))
    files = {
        "teacher": ([teacher / "model.safetensors"], flipped),
        "student": ([student / "model.safetensors"], flipped),
        "tokenizer": ([shards / "tokenizer" / "tokenizer.json"], other_word),
        "manifest": ([shards / "manifest.json"], other_setting),
        "rows": ([shards / "manifest.json"], one_row_less),
        "validation": ([shards / "validation-00000.arrow"], flipped),
        "shards": (sorted(shards.glob("train-?????.arrow")), flipped),
        "settings of the teacher": ([teacher / "config.json"], lambda data: b"{"),
    }
    for name, (paths, change) in files.items():
        work = partial(training, folder / name, "--model.student", str(student))
        ranks.case(name, work, paths, change)
    state = run / "checkpoints/step-0000002/state-00001-of-00002.safetensors"
    ranks.case("checkpoint", lambda: training(run), [state])
    weights = [teacher / "model.safetensors"]
    ranks.case("evaluated", lambda: evaluation(shards, teacher, world), weights)
    ranks.case("evaluated well", lambda: evaluation(shards, teacher, world))
    ranks.case("purged", lambda: asked(run, run / "checkpoints", folder / "kept"))
    ranks.case("restored", lambda: asked(run, folder / "kept", run / "checkpoints"))
    os._exit(0)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4:])
