"""What is left of a command beside one call: standard input, pages, packages of an extra."""

from __future__ import annotations

import codecs
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitb.base.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fitb.evaluation.evaluate_config import EvaluateConfig
    from fitb.infer.fill_config import FillConfig
    from fitb.serve.settings import ServeConfig
    from fitb.tools.inspect.inspection import InspectConfig

_TO_UTF_8 = "convert it, for instance with `iconv -f latin1 -t UTF-8`"


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Inspect shards, and write the page where one is asked for."""
    from fitb.base.templates import write_page
    from fitb.tools.inspect.display import as_page
    from fitb.tools.inspect.inspection import inspect

    result = inspect(config)
    if config.html:
        write_page(Path(config.html), as_page(result))
    return result


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate one model, or with `out` this task's share of several."""
    if config.out:
        from fitb.evaluation.folder import evaluate_all

        return evaluate_all(config, os.environ)
    from fitb.evaluation.evaluate import evaluate

    return evaluate(config)


def render_evaluation(result: dict[str, Any]) -> str:
    """Render one model's tables, or those of several."""
    from fitb.evaluation.printed import evaluation_text, folder_text

    return folder_text(result) if "missing" in result else evaluation_text(result)


def fill(config: FillConfig) -> Any:
    """Fill the blanks of the texts, or of the lines of standard input."""
    from fitb.infer.fill import fill_from

    if config.texts == ["-"]:
        config = dataclasses.replace(config, texts=_lines(_piped()))
    return fill_from(config)


def _piped() -> bytes:
    """Return standard input as it is; where it was replaced by a stream of text, as UTF-8."""
    raw = getattr(sys.stdin, "buffer", None)
    return raw.read() if raw else sys.stdin.read().encode()


def _lines(data: bytes) -> list[str]:
    """Return the lines of a pipe, which end at line feeds alone.

    Raises: DataError where they are not UTF-8.
    """
    texts = []
    lines = data.removeprefix(codecs.BOM_UTF8).removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise DataError(f"text {number} is not UTF-8: {error.reason}; {_TO_UTF_8}") from None
    return texts


def serve(config: ServeConfig) -> int:
    """Start the server.

    Raises: ConfigError where packages of its extra are missing.
    """
    # Before torch loads OpenMP: threads that wait awake for one another starve the event loop.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        from fitb.serve.server import serve
    except ImportError as error:
        if (error.name or "").split(".")[0] == "fitb":
            raise
        message = f"{error.name} is not installed; `pip install 'fitb[serve]'` brings it"
        raise ConfigError(message) from error
    return serve(config)
