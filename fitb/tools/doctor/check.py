"""Result of one check, and a list of results as text, JSON and an exit code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fitb.base.redact import redacted

Status = Literal["ok", "warn", "bad", "skipped"]
EXIT_CODES: Mapping[Status, int] = {"ok": 0, "skipped": 0, "warn": 1, "bad": 2}
_LONGEST = 600

_SECRET_NAME = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.I
)
_SHORTEST_SECRET = 6  # a value like 1 or true would blank out every such word


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Args:
        status: ok; warn: worth knowing; bad: a run will fail or will not come back; skipped: not
            checked, because it does not apply or cannot be checked here.
        name: name of the check.
        found: state that was found.
        fix: command or setting to type; empty unless the status is warn or bad.
    """

    status: Status
    name: str
    found: str
    fix: str = ""


def of_sentence(name: str, sentence: str, fix: str = "fitb train --help") -> Check:
    """Turn an error message of fitb into a bad check; what follows its last "; " is the fix.

    Args:
        fix: fix of a message that names none.
    """
    found, _, remedy = sentence.rpartition("; ")
    return Check("bad", name, found or remedy, remedy if found else fix)


def exit_code(checks: Iterable[Check]) -> int:
    """Return 2 if any check is bad, else 1 if any is a warning, else 0."""
    return max((EXIT_CODES[check.status] for check in checks), default=0)


def secrets_of(env: Mapping[str, str]) -> list[str]:
    """Return the values of variables whose names look like secrets, longest first."""
    found = {v for name, v in env.items() if _SECRET_NAME.search(name)}
    return sorted((v for v in found if len(v) >= _SHORTEST_SECRET), key=len, reverse=True)


def hidden(check: Check, secrets: Sequence[str]) -> Check:
    """Return a check with its texts on one line, truncated, and without secrets."""

    def clean(text: str) -> str:
        text = " ".join(text.split())
        for secret in secrets:
            text = text.replace(secret, "***")
        text = redacted(text)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."

    return replace(check, found=clean(check.found), fix=clean(check.fix))


def as_json(checks: Iterable[Check]) -> list[dict[str, Any]]:
    return [asdict(check) for check in checks]


def render(checks: Sequence[Check]) -> str:
    """Render one line per check and a last line with the number of each status."""
    width = max((len(check.name) for check in checks), default=0)
    lines = [
        f"{check.status:<8}{check.name:<{width}}  {check.found}"
        + (f"  | fix: {check.fix}" if check.fix else "")
        for check in checks
    ]
    counts = {status: sum(check.status == status for check in checks) for status in EXIT_CODES}
    return "\n".join([*lines, ", ".join(f"{n} {status}" for status, n in counts.items())])
