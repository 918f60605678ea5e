"""Checks of configuration values."""

from __future__ import annotations

import math

from fitb.base.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with a message unless a condition holds."""
    if not condition:
        raise ConfigError(message)


def check_range(
    section: str, values: object, *names: str, low: float, high: float = math.inf
) -> None:
    """Raise ConfigError unless low <= value < high for each named field; None passes, NaN fails."""
    for name in names:
        value = getattr(values, name)
        limit = f"at least {low:g}" + (f", below {high:g}" if high < math.inf else "")
        require(value is None or low <= value < high, f"{section}{name}={value}; {limit}")
