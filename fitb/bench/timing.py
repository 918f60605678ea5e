"""Timing of repeated runs, peak memory, and the machine on which they were taken."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from fitb.base import git
from fitb.base.errors import SystemFault

_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "pyarrow")
_SAMPLE_S = 0.01
_SAMPLES_PER_LISTING = 10  # listing child processes is expensive
_WARM_UP = 3  # items


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return median, minimum (`low`), maximum (`high`) and number of repeated measurements.

    Args:
        values: one per run; at least one.
        digits: decimal places kept.
    """
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
        "runs": len(values),
    }


def ratios(above: Sequence[float], below: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return the spread of above / below, run by run, for runs that were taken in turn."""
    return spread([a / b for a, b in zip(above, below, strict=True)], digits)


def seconds(work: Callable[[], Any], device: Any = None) -> float:
    """Return the wall-clock seconds of a call, synchronised with `device` if that is a GPU."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        import torch

        torch.cuda.synchronize(device)
    begin_s = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin_s


def in_turns(
    runs: Mapping[str, Callable[[int], Any]], size: int, repeats: int, device: Any = None
) -> dict[str, list[float]]:
    """Time each run once per turn, in alternating order; return the seconds of each.

    Args:
        runs: name -> call that handles so many items.
        size: number of items.
        repeats: counted turns, after one that warms up.
        device: as in `seconds`.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in list(runs.items())[:: -1 if turn % 2 else 1]:
            run(min(_WARM_UP, size))  # caches and threads are those of the previous run
            elapsed_s = seconds(partial(run, size), device)
            if turn:
                times[name].append(elapsed_s)
    return times


def peak_mb(command: Sequence[str]) -> float:
    """Run a command and return the peak memory of its whole process tree, in MB (1e6 bytes).

    Sums anonymous memory every 10 ms. Pages of mapped files are left out, because the
    kernel can reclaim them; a page shared after a fork counts once per process.

    Raises: SystemFault with the last line of stderr if the command fails.
    """
    import psutil

    peak = 0
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as process,
    ):
        root = psutil.Process(process.pid)
        members = [root]
        for sample in itertools.count():
            if process.poll() is not None:
                break
            if sample % _SAMPLES_PER_LISTING == 0:
                with contextlib.suppress(psutil.Error):  # ended meanwhile
                    members = [root, *root.children(recursive=True)]
            peak = max(peak, sum(map(_anonymous_bytes, members)))
            time.sleep(_SAMPLE_S)
        said.seek(0)
        last = said.read().decode(errors="replace").strip().splitlines()[-1:]
    if process.returncode:
        raise SystemFault(f"`{' '.join(command)}` ended with {process.returncode}: {last}")
    return round(peak / 1e6, 1)


def reset_peak_rss(device: Any) -> None:
    """Reset the peak memory counter of this process, or of its GPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # a kernel without it counts from the start
            Path("/proc/self/clear_refs").write_text("5")


def peak_rss_gb(device: Any) -> float:
    """Return peak resident memory since `reset_peak_rss`, or peak GPU allocation, in GB (1e9)."""
    if device.type == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    peak = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(peak[0]) * 1024 / 1e9, 3)


def _anonymous_bytes(process: Any) -> int:
    import psutil

    try:
        memory = process.memory_info()
    except psutil.Error:  # ended meanwhile
        return 0
    return int(memory.rss - memory.shared)


def machine() -> dict[str, Any]:
    """Return hardware, library versions, commit and date of a measurement."""
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
    """Render a result as lines of text, nested figures under dotted names."""
    return "\n".join(_lines(result, ""))


def _lines(result: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in result.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value.keys() == {"median", "low", "high", "runs"}:
            shown = "{median:,.6g} ({low:,.6g} to {high:,.6g}, {runs} runs)".format(**value)
            yield f"{name:36} {shown}"
        elif isinstance(value, dict):
            yield from _lines(value, f"{name}.")
        else:
            yield f"{name:36} {value}"
