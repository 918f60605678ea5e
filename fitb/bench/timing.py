"""Medians, spread, memory of a process tree, and the machine that a figure belongs to."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from fitb.base import git
from fitb.base.errors import SystemFault

_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "pyarrow")
_SAMPLE_S = 0.01
_SAMPLES_OF_A_LIST = 10  # listing children is dear
_ANONYMOUS = re.compile(r"RssAnon:\s+(\d+) kB")


@dataclass(frozen=True)
class Spread:
    """A figure of several runs.

    Args:
        median: of all runs.
        low: the least.
        high: the greatest.
        runs: how many.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float], digits: int = 3) -> Spread:
        rounded = [round(value, digits) for value in values]
        median = round(statistics.median(values), digits)
        return cls(median, min(rounded), max(rounded), len(values))

    def __str__(self) -> str:
        return f"{self.median:,.6g} ({self.low:,.6g} to {self.high:,.6g}, {self.runs} runs)"


def seconds(work: Callable[[], Any], device: Any = None) -> float:
    """Return the wall-clock time of a call; on a GPU until the device is done."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        import torch

        torch.cuda.synchronize(device)
    begin_s = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin_s


def peak_mb(command: Sequence[str]) -> float:
    """Run a command and return the greatest memory of it and its children together, in MB.

    Counted is anonymous memory (RssAnon), every 10 ms: pages of mapped files belong to the kernel,
    which takes them back when it needs them. A page that a fork shares counts for each.

    Raises: SystemFault where it fails, with the last it said.
    """
    import psutil

    peak = 0
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as process,
    ):
        root = psutil.Process(process.pid)
        members = [process.pid]
        for sample in itertools.count():
            if process.poll() is not None:
                break
            if sample % _SAMPLES_OF_A_LIST == 0:
                with contextlib.suppress(psutil.Error):  # ended meanwhile
                    members = [process.pid, *(kid.pid for kid in root.children(recursive=True))]
            peak = max(peak, sum(map(_anonymous_kb, members)))
            time.sleep(_SAMPLE_S)
        said.seek(0)
        last = said.read().decode(errors="replace").strip().splitlines()[-1:]
    if process.returncode:
        raise SystemFault(f"`{' '.join(command)}` ended with {process.returncode}: {last}")
    return round(peak * 1024 / 1e6, 1)


def reset_peak_rss(device: Any) -> None:
    """Begin to look for the highest memory of this process, or of its GPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # a kernel without it counts from the start
            Path("/proc/self/clear_refs").write_text("5")


def peak_rss_gb(device: Any) -> float:
    """Return the highest resident memory of this process since then, or allocated on its GPU."""
    if device.type == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    peak = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(peak[0]) * 1024 / 1e9, 3)


def _anonymous_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # ended meanwhile
        return 0
    return sum(map(int, _ANONYMOUS.findall(status)))


def machine() -> dict[str, Any]:
    """Return what a figure depends on besides the code: hardware, versions, commit, date."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": git.describe(dirty="+") or "unknown",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _LIBRARIES},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or sys.platform
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def render(result: dict[str, Any]) -> str:
    """Return a row as lines for people, nested figures under their own names."""
    return "\n".join(_lines(result, ""))


def _lines(result: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in result.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value.keys() == {"median", "low", "high", "runs"}:
            yield f"{name:36} {Spread(**value)}"
        elif isinstance(value, dict):
            yield from _lines(value, f"{name}.")
        else:
            yield f"{name:36} {value}"
