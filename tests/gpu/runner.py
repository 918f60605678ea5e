"""All checks of training on one GPU, within 8 minutes: `make gpu`.

    python tests/gpu/runner.py --shards FOLDER --out FOLDER [--dry] [--broken NAME] [--only NAME]

One process runs the checks in turn; this one ends it when a check has passed its deadline or the
process has died, and starts another one for the rest. After each check OUT/gpu.json and OUT/gpu.md
hold everything so far. The exit code is 0 if all checks have run and every number was right.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_S = 480.0  # of all checks together
START_S = 60.0  # of a process, beside the deadline of its first check
DRY_TIMES = 4  # longer deadlines where a CPU does it


def main() -> int:
    words = argparse.ArgumentParser()
    words.add_argument("--shards", type=Path, required=True, help="folder of sets 128 and 512")
    words.add_argument("--out", type=Path, required=True)
    words.add_argument("--dry", action="store_true", help="small sizes, on the CPU")
    words.add_argument("--broken", default="", help="a check whose numbers are falsified")
    words.add_argument("--only", nargs="+", default=[], help="names of checks")
    words.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = words.parse_args()
    given.shards, given.out = given.shards.resolve(), given.out.resolve()
    if given.here:
        return run_here(given)
    from checks import CHECKS

    if unknown := {*given.only, *filter(None, [given.broken])} - set(CHECKS):
        sys.exit(f"no check {', '.join(unknown)}; expected {', '.join(CHECKS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    ends_s = time.monotonic() + LIMIT_S
    names = [name for name in CHECKS if name in (given.only or CHECKS)]
    while left := [name for name in names if name not in results]:
        times = DRY_TIMES if given.dry else 1
        deadlines = {name: CHECKS[name].deadline_s * times for name in left}
        results |= run_apart(given, deadlines, ends_s, results)
    write(given.out, results)
    failed = [name for name, result in results.items() if not result["ok"]]
    print(f"{len(results) - len(failed)} of {len(results)} checks passed" + (
        f"; failed: {', '.join(failed)}" if failed else ""))  # fmt: skip
    return 1 if failed else 0


def run_apart(
    given: argparse.Namespace, deadlines: dict[str, float], ends_s: float, before: dict[str, Any]
) -> dict[str, Any]:
    """Run checks in one process, until it ends, dies, or one of them is late."""
    log = given.out / "results.jsonl"
    log.unlink(missing_ok=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--here", "--only", *deadlines]
    process = subprocess.Popen(command, start_new_session=True)
    found: dict[str, Any] = {}
    spoilt = False  # whether an error may spoil what the process does next
    names, now_s = iter(deadlines), time.monotonic()
    name = next(names)
    late_s = min(ends_s, now_s + START_S + deadlines[name])
    try:
        while True:
            for line in log.read_text().splitlines()[len(found) :] if log.exists() else ():
                result = json.loads(line)
                spoilt = result.pop("spoilt", False)
                found[result.pop("name")] = result
                write(given.out, before | found)
                name = next(names, "")
                late_s = min(ends_s, time.monotonic() + deadlines.get(name, 30.0))
            ended = process.poll() is not None
            if not name or ended or spoilt or time.monotonic() > late_s:
                break
            time.sleep(0.1)
        code = process.poll()
        if name and not spoilt:
            why = f"its process ended with {code}" if code is not None else "it was late"
            found[name] = {"ok": False, "error": why, "seconds": round(deadlines[name])}
        if time.monotonic() > ends_s:
            for rest in deadlines.keys() - found.keys():
                found[rest] = {"ok": False, "error": "no time was left", "seconds": 0}
        if not name:
            with contextlib.suppress(subprocess.TimeoutExpired):  # workers of a compiler may linger
                process.wait(30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return found


def run_here(given: argparse.Namespace) -> int:
    """Run checks in this process, and append the result of each to OUT/results.jsonl."""
    from checks import CHECKS
    from setting import Setting, Wrong

    if given.dry:
        from functools import partial

        import torch
        from deepspeed.accelerator import get_accelerator

        type(get_accelerator()).is_fp16_supported = lambda self: True  # in software
        torch.compile = partial(torch.compile, backend="eager")
    runs = Path(tempfile.mkdtemp(prefix="runs-", dir=given.out))
    for name in given.only:
        at = Setting(given.shards, given.dry, name == given.broken, runs)
        began_s = time.monotonic()
        try:
            result: dict[str, Any] = {"ok": True, **CHECKS[name].run(at)}
        except Exception as error:
            result = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
            # Such as an illegal memory access, after which CUDA answers nothing else.
            result["spoilt"] = not isinstance(error, Wrong)
        result |= {"name": name, "seconds": round(time.monotonic() - began_s, 1)}
        with open(given.out / "results.jsonl", "a") as log:
            log.write(json.dumps(result) + "\n")
        if result.get("spoilt"):
            return 1
    return 0


def write(out: Path, results: dict[str, Any]) -> None:
    """Write what is known as JSON, and as a table."""
    (out / "gpu.json").write_text(json.dumps(results, indent=1))
    lines = ["| check | passed | seconds | found |", "|---|---|---|---|"]
    for name, result in results.items():
        rest = {key: value for key, value in result.items() if key not in ("ok", "seconds")}
        found = json.dumps(rest).replace("|", "/")[:600]
        passed = "yes" if result["ok"] else "NO"
        lines.append(f"| {name} | {passed} | {result['seconds']} | {found} |")
    (out / "gpu.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
