"""Functions of commands that need more than one call: standard input, extras."""

from __future__ import annotations

import codecs
import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from fitb.base.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fitb.evaluation.evaluate_config import EvaluateConfig
    from fitb.infer.fill_config import FillConfig
    from fitb.serve.serve_config import ServeConfig


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate one model, or with `out` this task's share of several models."""
    if config.out:
        from fitb.evaluation.folder import evaluate_all

        return evaluate_all(config, os.environ)
    from fitb.evaluation.evaluate import evaluate

    return evaluate(config)


def render_evaluation(result: dict[str, Any]) -> str:
    """Render the result of `evaluate`."""
    from fitb.evaluation.printed import evaluation_text, folder_text

    return folder_text(result) if "missing" in result else evaluation_text(result)


def fill(config: FillConfig) -> Any:
    """Fill the blanks of the texts, or of the lines of standard input."""
    from fitb.infer.fill import fill_from

    if config.texts == ["-"]:
        piped = getattr(sys.stdin, "buffer", None)  # what replaces it may have none
        data = piped.read() if piped else sys.stdin.read().encode()
        config = dataclasses.replace(config, texts=_lines(data))
    return fill_from(config)


def _lines(data: bytes) -> list[str]:
    """Split UTF-8 text into lines, at line feeds only."""
    texts = []
    lines = data.removeprefix(codecs.BOM_UTF8).removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise DataError(
                f"text {number} is not UTF-8: {error.reason}; convert it, for instance with `iconv"
                " -f latin1 -t UTF-8`"
            ) from None
    return texts


def serve(config: ServeConfig) -> int:
    """Start the server.

    Raises: ConfigError if packages of its extra are missing.
    """
    # Must be set before torch loads OpenMP: spinning threads would starve the event loop.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        from fitb.serve.server import serve
    except ImportError as error:
        if (error.name or "").split(".")[0] == "fitb":
            raise
        message = f"{error.name} is not installed; run `pip install 'fitb[serve]'`"
        raise ConfigError(message) from error
    return serve(config)
