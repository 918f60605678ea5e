"""Checks that need torch, run in a child process: if it crashes, that is a result too."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from fitb.base.errors import ContractError, FitbError
from fitb.cluster.process import output_of
from fitb.tools.doctor.check import Check, of_sentence
from fitb.tools.doctor.deadlines import reason

MARK = "fitb-doctor-check "  # prefix of our lines: libraries print on standard output too


def emit(checks: Iterable[Check], name: str) -> None:
    """In the child: print each check as it comes, an exception as a last check, and exit.

    Args:
        name: name of the check that reports an exception.
    """
    try:
        for check in checks:
            _print(check)
    except ContractError as error:
        for failure in error.failures:
            _print(of_sentence("contract", failure))
    except FitbError as error:
        _print(of_sentence(name, str(error)))
    except Exception as error:
        module = f"fitb.tools.doctor.{Path(sys.argv[0]).stem}"
        _print(Check("bad", name, reason(error), _traceback_of(module)))
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(0)  # threads of a process group may block on the network


def _print(check: Check) -> None:
    print(MARK + json.dumps(asdict(check)), flush=True)


def _traceback_of(module: str) -> str:
    return f"{sys.executable} -m {module} ...  # prints the whole traceback"


def run(module: str, flags: Sequence[str], name: str, timeout_s: float) -> list[Check]:
    """Run a module that emits checks in a child process, and return them.

    Args:
        name: name of the check that reports a failed process.
    """
    answer = output_of(sys.executable, "-m", module, *flags, timeout_s=timeout_s)
    lines = [line for line in answer.text.splitlines() if line.startswith(MARK)]
    checks = [Check(**json.loads(line.removeprefix(MARK))) for line in lines]
    if not answer.ok and not any(check.status == "bad" for check in checks):
        words = answer.problem.replace(" ".join([sys.executable, "-m", module]), module)
        checks.append(Check("bad", name, words, _traceback_of(module)))
    return checks
