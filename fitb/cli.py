"""The command line: parse, call, print, exit code. Heavy imports happen inside the commands."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import fitb
from fitb import fsio, git, help, log
from fitb.config import Config
from fitb.errors import CRASH, STOP, ConfigError, DataError, FitbError, nearest
from fitb.modes import fault_of
from fitb.world import without_local_rank

T = TypeVar("T")
_TO_UTF_8 = "convert it, for instance with `iconv -f latin1 -t UTF-8`"
INTERRUPTED = 130  # what a shell gives a command that Ctrl-C ended


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words, command = list(sys.argv[1:] if args is None else args), ""
    log.setup()
    try:
        command, *flags = without_local_rank(words, os.environ) or ["--help"]
        if command in ("-h", "--help"):
            print(help.overview(), end="")
            return 0
        if command == "--version":
            print(_version())
            return 0
        if command not in COMMANDS:
            message = f"unknown command {command!r}{nearest(command, COMMANDS)}"
            raise ConfigError(f"{message}; `fitb --help` lists all")
        code = COMMANDS[command](flags)
        sys.stdout.flush()  # a reader that has gone is noticed here, not at the interpreter's end
        return code
    except KeyboardInterrupt:
        logging.getLogger("fitb").error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CRASH
    except (FitbError, PermissionError) as error:
        if isinstance(error, PermissionError):
            error = fault_of(error, "a file")
        logging.getLogger("fitb").error("%s", error)
        command = command or next((word for word in words if word in COMMANDS), "")
        return STOP if command == "train" and not error.restart_helps else error.exit_code


def parse(kind: type[T], prog: str, flags: list[str]) -> T:
    """As fitb.flags has it; the doctor must start where its libraries are missing."""
    from fitb import flags as of_fitb

    return of_fitb.parse(kind, prog, flags)


def _version() -> str:
    """Name the version, and in a checkout the commit."""
    commit = git.describe()
    return f"fitb {fitb.__version__}" + (f" ({commit})" if commit else "")


def _doctor(flags: list[str]) -> int:
    from fitb.doctor.check import as_json, exit_code, render
    from fitb.doctor.doctor import doctor, front

    where, training = front().split(flags)
    found = doctor(where, training)
    print(fsio.to_json(as_json(found)) if where.json else render(found))
    return exit_code(found)


def _scripts(flags: list[str]) -> int:
    from fitb.cluster.scripts import ScriptsConfig, scripts

    print(scripts(parse(ScriptsConfig, "fitb scripts", flags)))
    return 0


def _site(flags: list[str]) -> int:
    from fitb.site_init import SiteConfig, init, say

    config = parse(SiteConfig, "fitb site", flags)
    result = init(config)
    print(fsio.to_json(result) if config.json else say(result))
    return 0


def _prepare(flags: list[str]) -> int:
    from fitb.prepare.preparation import prepare
    from fitb.prepare.settings import PrepareConfig

    print(prepare(parse(PrepareConfig, "fitb prepare", flags)))
    return 0


def _inspect(flags: list[str]) -> int:
    from fitb.inspect.display import as_page, as_text
    from fitb.inspect.inspection import InspectConfig, inspect
    from fitb.templates import write_page

    config = parse(InspectConfig, "fitb inspect", flags)
    result = inspect(config)
    if config.html:
        write_page(Path(config.html), as_page(result))
    print(fsio.to_json(result) if config.json else as_text(result))
    return 0


def _train(flags: list[str]) -> int:
    config = parse(Config, "fitb train", flags)
    from fitb.train.loop import train

    return train(config)


def _sync(flags: list[str]) -> int:
    from fitb.sync import SyncConfig, sync

    print(sync(parse(SyncConfig, "fitb sync", flags)))
    return 0


def _status(flags: list[str]) -> int:
    from fitb.tools.status import StatusConfig, show

    return show(parse(StatusConfig, "fitb status", flags))


def _report(flags: list[str]) -> int:
    from fitb.report.build import as_text, report
    from fitb.report.report_config import ReportConfig

    config = parse(ReportConfig, "fitb report", flags)
    with contextlib.redirect_stdout(sys.stderr):  # libraries talk
        result = report(config)
    print(fsio.to_json(result) if config.json else as_text(result))
    return 0


def _rehearse(flags: list[str]) -> int:
    from fitb.rehearse.rehearsal import front, rehearse
    from fitb.rehearse.verdict import as_json, render

    where, training = front().split(flags)
    found = rehearse(where, training)
    print(fsio.to_json(as_json(found)) if where.json else render(found))
    return 1 if found.reasons else 0


def _evaluate(flags: list[str]) -> int:
    from fitb.evaluate.evaluate_config import EvaluateConfig
    from fitb.evaluate.folder import evaluate_all
    from fitb.evaluate.printed import evaluation_text, folder_text

    config = parse(EvaluateConfig, "fitb evaluate", flags)
    if config.out:
        found = evaluate_all(config, os.environ)
        if found:
            print(fsio.to_json(found) if config.json else folder_text(found))
        return 0
    from fitb.evaluate.evaluate import evaluate

    result = evaluate(config)
    if result:  # of rank 0 alone
        print(fsio.to_json(result) if config.json else evaluation_text(result))
    return 0


def _compare(flags: list[str]) -> int:
    from fitb.evaluate.compare import compare
    from fitb.evaluate.evaluate_config import CompareConfig
    from fitb.evaluate.printed import comparison_text

    config = parse(CompareConfig, "fitb compare", flags)
    result = compare(config)
    if result:
        print(fsio.to_json(result) if config.json else comparison_text(result))
    return 0


def _fill(flags: list[str]) -> int:
    from fitb.infer.config import FillConfig

    config = parse(FillConfig, "fitb fill", flags)
    from fitb.infer.fill import as_json, fill_from, render

    if config.texts == ["-"]:
        config = dataclasses.replace(config, texts=_lines(_piped()))
    filled = fill_from(config)
    print(fsio.to_json(as_json(filled), ensure_ascii=False) if config.json else render(filled))
    return 0


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


def _serve(flags: list[str]) -> int:
    # Before torch loads OpenMP: threads that wait awake for one another starve the event loop.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from fitb.serve.settings import ServeConfig

    config = parse(ServeConfig, "fitb serve", flags)
    try:
        from fitb.serve.server import serve
    except ImportError as error:
        if (error.name or "").split(".")[0] == "fitb":
            raise
        message = f"{error.name} is not installed; `pip install 'fitb[serve]'` brings it"
        raise ConfigError(message) from error
    return serve(config)


def _export(flags: list[str]) -> int:
    from fitb.export import ExportConfig, export, render

    config = parse(ExportConfig, "fitb export", flags)
    with contextlib.redirect_stdout(sys.stderr):  # libraries talk
        result = export(config)
    print(fsio.to_json(result) if config.json else render(result))
    return 0


def _plan(flags: list[str]) -> int:
    from fitb.plan import PlanConfig, as_json, plan, render

    config = parse(PlanConfig, "fitb plan", flags)
    found = plan(config)
    print(fsio.to_json(as_json(found)) if config.json else render(config, found))
    return 0


def _bench(flags: list[str]) -> int:
    what, *rest = flags or ["--help"]
    if what in ("-h", "--help"):
        print(help.benchmarks_overview(), end="")
        return 0
    known = help.benchmarks()
    if what not in known:
        message = f"unknown benchmark {what!r}{nearest(what, known)}"
        raise ConfigError(f"{message}; expected one of {', '.join(known)}")
    from fitb.bench.measure import render
    from fitb.front import load

    name = f"fitb bench {what}"
    config = parse(load(help.PAGES[name].config), name, rest)
    module = importlib.import_module(f"fitb.bench.{what}")
    with contextlib.redirect_stdout(sys.stderr):  # libraries talk; the row alone is the output
        result = module.bench(config)
    if not result:  # of a rank other than 0
        return 0
    print(fsio.to_json(result) if config.json else render(result))
    return 0


def _completion(flags: list[str]) -> int:
    from fitb.completion import CompletionConfig, script

    print(script(parse(CompletionConfig, "fitb completion", flags).shell), end="")
    return 0


def _demo(flags: list[str]) -> int:
    from fitb.demo import DemoConfig, demo

    return demo(parse(DemoConfig, "fitb demo", flags))


COMMANDS = {
    "doctor": _doctor,
    "scripts": _scripts,
    "site": _site,
    "prepare": _prepare,
    "inspect": _inspect,
    "train": _train,
    "status": _status,
    "report": _report,
    "rehearse": _rehearse,
    "sync": _sync,
    "evaluate": _evaluate,
    "compare": _compare,
    "fill": _fill,
    "serve": _serve,
    "export": _export,
    "plan": _plan,
    "bench": _bench,
    "demo": _demo,
    "completion": _completion,
}
