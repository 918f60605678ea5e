"""The interpreter, the packages that fitb asks for, and the compiler that torch asks for."""

from __future__ import annotations

import configparser
import importlib.metadata
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fitb.tools.doctor.check import Check

DISTRIBUTION = "fitb"
UNREADABLE = "unreadable"  # stands for the version of a package whose metadata are damaged


def pip(*words: str) -> str:
    """Return a command of pip for the interpreter that asks."""
    return shlex.join([sys.executable, "-m", "pip", "install", *words])


def python_version(version: str, wanted: str) -> Check:
    """Say whether Python is one that fitb runs on.

    Args:
        version: such as 3.11.2.
        wanted: a range as in Requires-Python.
    """
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Check("ok", "python", f"{version}, expected {wanted}")
    fix = "rm -rf .venv && make install PYTHON=python3.12"
    return Check("bad", "python", f"{version}, expected {wanted}", fix)


def requirements(required: Sequence[str], version_of: Callable[[str], str | None]) -> Check:
    """Say which packages are missing or of a wrong version, with one command for all of them.

    Args:
        required: lines of Requires-Dist; those of extras are passed over.
        version_of: name -> version, None where it is not installed, or UNREADABLE.
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
    over = ["--ignore-installed"] if "damaged" in found else []  # pip cannot remove such a one
    return Check("bad", "packages", found, pip(*over, *words))


def interpreter(running: str, batch: str | None, named: bool) -> Check:
    """Say whether the batch scripts will start the interpreter that is looked at here.

    Args:
        running: sys.executable.
        batch: what the scripts will start: FITB_PYTHON, or `python` on PATH; None for nothing.
        named: whether FITB_PYTHON says so.
    """
    fix = f"export FITB_PYTHON={shlex.quote(running)}"
    if batch is None:
        found = "no python is on PATH, and FITB_PYTHON is not set: batch scripts cannot start"
        return Check("bad", "interpreter", found, fix)
    if Path(batch).parent.resolve() == Path(running).parent.resolve():
        return Check("ok", "interpreter", f"batch scripts start {batch}, which is this one")
    if named:
        found = f"FITB_PYTHON is {batch}; what follows is about {running}"
        return Check("warn", "interpreter", found, f"{shlex.quote(batch)} -m fitb doctor")
    found = f"batch scripts start {batch}, not {running}, which is looked at here"
    return Check("warn", "interpreter", found, fix)


def compiler(path: str | None) -> Check:
    """Say whether there is the C compiler with which torch.compile builds on GPUs."""
    if path:
        return Check("ok", "compiler", path)
    what = "no C compiler on PATH: on hosts with GPUs torch.compile builds with one"
    return Check(
        "warn", "compiler", what, "module load gcc  # or: fitb train --speed.compile false"
    )


def version_of(name: str) -> str | None:
    """Return the version of an installed package, UNREADABLE where it says none."""
    try:
        return importlib.metadata.version(name) or UNREADABLE
    except importlib.metadata.PackageNotFoundError:
        return None
    except Exception:  # a damaged folder may fail in any way
        return UNREADABLE


def declared() -> tuple[str, list[str], bool]:
    """Return the range of Python, the requirements, and whether fitb itself is installed.

    Without an installation they are those of the checkout's setup.cfg.
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
    """Gather what this room judges."""
    wanted, required, installed = declared()
    if version_of("packaging") is None:
        yield Check(
            "bad", "packages", "packaging is missing: no version can be judged", pip("packaging")
        )
    else:
        yield python_version(".".join(map(str, sys.version_info[:3])), wanted)
        yield requirements(required, version_of)
    if not installed:
        found = "fitb is not installed: batch scripts find it from the root of the checkout alone"
        yield Check(
            "warn", "installation", found, pip("--editable", str(Path(__file__).parents[3]))
        )
    if on_slurm:
        named = env.get("FITB_PYTHON")
        batch = shutil.which(named or "python", path=env.get("PATH"))
        yield interpreter(sys.executable, batch, bool(named))
    names = [*filter(None, [env.get("CC")]), "gcc", "clang", "cc"]
    yield compiler(
        next((p for name in names if (p := shutil.which(name, path=env.get("PATH")))), None)
    )
