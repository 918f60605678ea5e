"""Checks of Python, the packages that fitb requires, and the C compiler that torch requires."""

from __future__ import annotations

import configparser
import importlib.metadata
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from fitb.tools.doctor.check import Check

DISTRIBUTION = "fitb"
UNREADABLE = "unreadable"  # version of a package whose metadata are damaged


def pip(*words: str) -> str:
    """Return a pip command for this interpreter."""
    return shlex.join([sys.executable, "-m", "pip", "install", *words])


def python_version(version: str, wanted: str) -> Check:
    """Check the version of Python."""
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Check("ok", "python", f"{version}, expected {wanted}")
    fix = "rm -rf .venv && make install PYTHON=python3.12"
    return Check("bad", "python", f"{version}, expected {wanted}", fix)


def requirements(required: Sequence[str], version_of: Callable[[str], str | None]) -> Check:
    """Check the installed packages; one command fixes all of them.

    Args:
        required: lines of Requires-Dist; those of extras are ignored.
        version_of: name -> version, None if it is not installed, or UNREADABLE.
    """
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion, Version

    wanted = [Requirement(line) for line in required]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    problems: list[str] = []
    words: list[str] = []
    for one in wanted:
        version = version_of(one.name)
        try:
            if version and one.specifier.contains(Version(version), prereleases=True):
                continue
            state = f"{version}, expected {one.specifier}" if version else "is missing"
        except InvalidVersion:
            state = "has damaged metadata"
        problems.append(f"{one.name} {state}")
        one.marker = None
        words.append(str(one))
    if not problems:
        return Check("ok", "packages", f"{len(wanted)} installed and in range")
    found = f"{len(problems)} of {len(wanted)}: {', '.join(problems)}"
    over = ["--ignore-installed"] if "damaged" in found else []  # pip cannot uninstall these
    return Check("bad", "packages", found, pip(*over, *words))


def interpreter(running: str, batch: str | None, named: bool) -> Check:
    """Check that the batch scripts start the interpreter that is running.

    Args:
        batch: what the scripts start: FITB_PYTHON, or `python` on PATH; None if there is none.
        named: whether FITB_PYTHON is set.
    """
    fix = f"export FITB_PYTHON={shlex.quote(running)}"
    if batch is None:
        found = "no python is on PATH, and FITB_PYTHON is not set: batch scripts cannot start"
        return Check("bad", "interpreter", found, fix)
    if Path(batch).parent.resolve() == Path(running).parent.resolve():
        return Check("ok", "interpreter", f"batch scripts start {batch}, which is this one")
    found = f"batch scripts start {batch}, but these checks are about {running}"
    fix = f"{shlex.quote(batch)} -m fitb doctor" if named else fix
    return Check("warn", "interpreter", found, fix)


def compiler(path: str | None) -> Check:
    """Check that torch.compile has a C compiler, which it needs on GPUs."""
    if path:
        return Check("ok", "compiler", path)
    fix = "module load gcc  # or: fitb train --speed.compile false"
    return Check("warn", "compiler", "no C compiler on PATH; torch.compile needs one on GPUs", fix)


def version_of(name: str) -> str | None:
    """Return the version of a package, None if it is not installed, UNREADABLE if damaged."""
    try:
        return importlib.metadata.version(name) or UNREADABLE
    except importlib.metadata.PackageNotFoundError:
        return None
    except Exception:  # damaged metadata may raise anything
        return UNREADABLE


def declared() -> tuple[str, list[str], bool]:
    """Return the Python range, the requirements, and whether fitb itself is installed.

    If it is not, they come from the checkout's setup.cfg.
    """
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
        required = importlib.metadata.requires(DISTRIBUTION) or []
        return metadata["Requires-Python"] or ">=3.10", required, True
    except importlib.metadata.PackageNotFoundError:
        setup = configparser.ConfigParser()
        setup.read(Path(__file__).parents[3] / "setup.cfg")
        options = setup["options"] if setup.has_section("options") else {}
        lines = options.get("install_requires", "").split("\n")
        return options.get("python_requires", ">=3.10"), [one for one in lines if one], False


def look(env: Mapping[str, str], on_slurm: bool) -> Iterator[Check]:
    """Yield all checks of Python and its packages."""
    wanted, required, installed = declared()
    if version_of("packaging") is None:
        found = "packaging is missing: versions cannot be compared"
        yield Check("bad", "packages", found, pip("packaging"))
    else:
        yield python_version(".".join(map(str, sys.version_info[:3])), wanted)
        yield requirements(required, version_of)
    if not installed:
        found = "fitb is not installed: batch scripts work only from the root of the checkout"
        fix = pip("--editable", str(Path(__file__).parents[3]))
        yield Check("warn", "installation", found, fix)
    which = partial(shutil.which, path=env.get("PATH"))
    if on_slurm:
        named = env.get("FITB_PYTHON")
        yield interpreter(sys.executable, which(named or "python"), bool(named))
    names = [*filter(None, [env.get("CC")]), "gcc", "clang", "cc"]
    yield compiler(next(filter(None, map(which, names)), None))
