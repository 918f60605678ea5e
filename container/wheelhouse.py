"""Collect every wheel that a node without a network needs: `make wheelhouse PYTHON=3.12`.

constraints.txt decides every version, so nothing is resolved: the wheels at hand say what they
require, what is not there is fetched, and that again says what it requires, until nothing is
missing. Markers are read for the Python and the machine that the wheels are for; `pip download`
reads them for the Python that it runs on. Standard library and pip alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path

try:
    from packaging import markers, tags, utils
    from packaging.requirements import Requirement
except ImportError:  # pip brings a copy
    from pip._vendor.packaging import markers, tags, utils
    from pip._vendor.packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# Published as source alone; told not to, it compiles nothing. A pip before 25.3 builds it
# apart from what is installed only where it is told to.
SOURCE_ONLY = ("deepspeed",)
BUILD = {"DS_BUILD_OPS": "0", "PIP_USE_PEP517": "1"}
EXTRAS = "clean,onnx,remote,serve"


@dataclass(frozen=True)
class Target:
    """The Python and the machine that the wheels are for.

    Args:
        version: of CPython, as 3.12.
        platform: newest tag that the machine takes, as manylinux_2_28_x86_64.
    """

    version: str
    platform: str

    @property
    def platforms(self) -> list[str]:
        """Tags of all wheels that the machine takes, newest first."""
        found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", self.platform)
        if not found:
            sys.exit(f"--platform {self.platform}: expected manylinux_2_MINOR_MACHINE")
        newest, machine = int(found[1]), found[2]
        return [
            *(f"manylinux_2_{minor}_{machine}" for minor in range(newest, 16, -1)),
            *(f"manylinux{year}_{machine}" for year in (2014,)),
            *(f"manylinux_2_{minor}_{machine}" for minor in range(16, 4, -1)),
            *(f"manylinux{year}_{machine}" for year in (2010, 1)),
            f"linux_{machine}",
        ]

    @property
    def tags(self) -> set[tags.Tag]:
        """Of the wheels that pip would install there."""
        version = (3, int(self.version.split(".")[1]))
        interpreter = f"cp3{version[1]}"
        own = tags.cpython_tags(version, abis=[interpreter], platforms=self.platforms)
        return {*own, *tags.compatible_tags(version, interpreter, self.platforms)}

    def holds(self, marker: markers.Marker | None, extra: str = "") -> bool:
        """Whether a marker is true there."""
        running = ".".join(map(str, sys.version_info[:2]))
        there = {
            "python_version": self.version,
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
            "platform_machine": self.platforms[0].split("_", 3)[3],
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "extra": extra,
        }
        if self.version != running:
            there |= dict.fromkeys(("python_full_version", "implementation_version"), self.version)
        return marker is None or marker.evaluate(there)


@dataclass
class Needs:
    """What must be in the wheelhouse.

    Args:
        wheels: those at hand, by the name of their project.
        missing: requirements that no wheel at hand answers.
        conflicts: requirements that the pinned version does not meet.
    """

    wheels: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, Requirement] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)


def pins(text: str, target: Target, torch: str) -> dict[str, str]:
    """Return the constraints that hold for the target, by project.

    Args:
        text: of constraints.txt.
        torch: label of a build (cpu, cu130), or default: what pip prefers; none leaves it out.
    """
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            if target.holds(pin.marker):
                found[utils.canonicalize_name(pin.name)] = f"{pin.name}{pin.specifier}"
    if torch not in ("default", "none"):
        found["torch"] += f"+{torch}"
    return found


def fits(path: Path, target: Target, pinned: dict[str, str]) -> bool:
    """Whether a wheel is one of those that the target and the constraints ask for."""
    name, version, _, its_tags = utils.parse_wheel_filename(path.name)
    pin = pinned.get(name)
    allowed = pin is None or Requirement(pin).specifier.contains(version, prereleases=True)
    return allowed and bool(its_tags & target.tags)


def requirements_of(path: Path) -> Iterator[Requirement]:
    """Yield what a wheel requires, with its markers."""
    with zipfile.ZipFile(path) as wheel:
        (name,) = (n for n in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        metadata = Parser().parsestr(wheel.read(name).decode())
    yield from map(Requirement, metadata.get_all("Requires-Dist") or ())


def look(paths: Iterable[Path], root: Requirement, target: Target, without: set[str]) -> Needs:
    """Follow the requirements of `root` through the wheels at hand.

    Args:
        paths: wheels, of which each fits the target.
        without: projects that the target has, or does without.
    """
    at_hand = {utils.parse_wheel_filename(path.name)[0]: path for path in paths}
    needs, seen, todo = Needs(), set(), [(root, "")]
    while todo:
        wanted, asker = todo.pop()
        name = utils.canonicalize_name(wanted.name)
        if name in without:
            continue
        if name not in at_hand:
            needs.missing[name] = wanted
            continue
        needs.wheels[name] = at_hand[name]
        version = utils.parse_wheel_filename(at_hand[name].name)[1]
        if not wanted.specifier.contains(version, prereleases=True):
            needs.conflicts.append(f"{asker} asks for {wanted}; {version} is pinned")
        for extra in {"", *wanted.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            todo += [
                (one, name)
                for one in requirements_of(at_hand[name])
                if target.holds(one.marker, extra)
            ]
    return needs


def pip(*words: str, env: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    if subprocess.run(command, env={**os.environ, **(env or {})}).returncode:
        sys.exit(f"`pip {words[0]}` failed, for what it says above")


def fetch(wanted: Iterable[str], target: Target, out: Path) -> None:
    """Bring the wheels of exact requirements into a folder; build those published as source."""
    built = [one for one in wanted if one.split("==")[0] in SOURCE_ONLY]
    ready = [one for one in wanted if one not in built]
    for one in built:
        pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), one, env=BUILD)
    if ready:
        platforms = [word for name in target.platforms for word in ("--platform", name)]
        options = ("--no-deps", "--only-binary=:all:", "--implementation", "cp")
        where = ("--python-version", target.version, *platforms, "--dest", str(out))
        pip("download", "--quiet", *options, *where, *ready)


def collect(target: Target, extras: str, torch: str, out: Path) -> list[Path]:
    """Fill a folder with what fitb and its extras require, and nothing else; return the wheels.

    SHA256SUMS names what was put there; a wheel that is not in it ends this, and stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    pinned = pins((ROOT / "constraints.txt").read_text(), target, torch)
    sums = read_sums(out)
    remove(out.glob("fitb-*.whl"), sums)
    before = set(out.glob("*.whl"))
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # or modules that are gone go along
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT))
    root = Requirement(f"fitb[{extras}]")
    while True:
        sums |= {path.name: digest_of(path) for path in set(out.glob("*.whl")) - before}
        write_sums(sums, out)
        before = set(out.glob("*.whl"))
        at_hand = [path for path in sorted(out.glob("*.whl")) if fits(path, target, pinned)]
        needs = look(at_hand, root, target, {"torch"} if torch == "none" else set())
        if not needs.missing:
            break
        wanted = [
            pinned.get(name, f"{one.name}{one.specifier}") for name, one in needs.missing.items()
        ]
        print(f"{len(needs.wheels)} wheels are here; fetching {', '.join(wanted)}", flush=True)
        fetch(wanted, target, out)
        if not any(fits(path, target, pinned) for path in set(out.glob("*.whl")) - set(at_hand)):
            sys.exit("what pip fetched does not fit the target")
    if needs.conflicts:
        sys.exit("\n".join(needs.conflicts))
    remove(set(out.glob("*.whl")) - set(needs.wheels.values()), sums)
    found = sorted(needs.wheels.values())
    write_sums({path.name: sums.get(path.name) or digest_of(path) for path in found}, out)
    return found


def remove(paths: Iterable[Path], sums: Mapping[str, str]) -> None:
    """Remove wheels that are those of SHA256SUMS; exit, with all there, where one is not."""
    paths = sorted(paths)
    strange = [path for path in paths if sums.get(path.name) != digest_of(path)]
    if strange:
        sys.exit(
            f"{', '.join(map(str, strange))}: not put there by this program, and in the way; move"
            " it away, or name another --out"
        )
    for path in paths:
        path.unlink()


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_sums(out: Path) -> dict[str, str]:
    """Return the digest of each wheel in SHA256SUMS; exit where that is another file."""
    path = out / "SHA256SUMS"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    found = [re.fullmatch(r"([0-9a-f]{64})  ([^/]+\.whl)", line) for line in lines]
    if path.is_symlink() or not all(found):
        sys.exit(f"{path} is not a list of wheels; move it away, or name another --out")
    return {line[2]: line[1] for line in found if line}


def write_sums(sums: Mapping[str, str], out: Path) -> None:
    """Write SHA256SUMS, which `sha256sum --check` reads."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    (out / "SHA256SUMS").write_text("".join(lines))


def version_of(python: str) -> str:
    """Return the version that a version or an interpreter stands for."""
    if re.fullmatch(r"3\.\d+", python):
        return python
    code = "import sys; print(*sys.version_info[:2], sep='.')"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--python", default=sys.executable, help="version, as 3.12, or an interpreter")
    add("--platform", default=f"manylinux_2_28_{os.uname().machine}", help="of the nodes")
    add("--extras", default=EXTRAS, help="of fitb, with commas")
    add("--torch", default="default", help="label of a build (cpu, cu130), default, or none")
    add("--out", type=Path, default=Path("wheelhouse"))
    where = parser.parse_args()
    target = Target(version_of(where.python), where.platform)
    paths = collect(target, where.extras, where.torch, where.out)
    size_mb = sum(path.stat().st_size for path in paths) / 1e6
    print(f"{len(paths)} wheels, {size_mb:,.0f} MB, for Python {target.version} in {where.out}")
    print(f"there: python{target.version} -m venv venv && venv/bin/pip install --no-index \\")
    print(f"    --find-links {where.out} 'fitb[{where.extras}]'")


if __name__ == "__main__":
    main()
