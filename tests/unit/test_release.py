"""What a release holds: the wheel, the source, and what they say of themselves."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from executable import ran

import fitb

ROOT = Path(__file__).resolve().parents[2]
BUILT = (
    "import sys; from setuptools import build_meta as backend; out = sys.argv[1];"
    " backend.build_sdist(out); backend.build_wheel(out)"
)


@pytest.fixture(scope="session")
def tracked():
    """Files of the repository, of which a release is made."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout: git does not list its files")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def dist(tracked, tmp_path_factory):
    """The folder of both, built from a copy without anything that the repository does not hold."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    ran(sys.executable, "-c", BUILT, out, cwd=source)
    return out


@pytest.fixture(scope="session")
def unpacked(dist, tmp_path_factory):
    """The wheel as pip would lay it down."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_its_data_and_the_scripts_and_nothing_else(unpacked, tracked):
    inside = {
        path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()
    }
    suffixes = {
        "launch": ".py",
        "slurm": (".sh", "site.example.env"),
        "ds_configs": (".json", ".py"),
    }
    expected = {
        name if name.startswith("fitb/") else f"fitb/{name}"
        for name in tracked
        if name.startswith("fitb/") or name.endswith(suffixes.get(name.split("/")[0], ("\0",)))
    }
    assert {name for name in inside if ".dist-info/" not in name} == expected


def test_the_source_holds_what_the_repository_holds(dist, tracked):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {member.name.partition("/")[2] for member in archive if member.isfile()}
    written = {"PKG-INFO"} | {name for name in inside if name.startswith("fitb.egg-info/")}
    assert inside - written == set(tracked)


def test_the_version_is_said_once_and_by_the_citation_too(unpacked):
    (path,) = unpacked.glob("*.dist-info/METADATA")
    assert Parser().parsestr(path.read_text())["Version"] == fitb.__version__
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: fitb.__version__"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == fitb.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_a_wheel_starts_without_torch_and_finds_its_scripts_and_presets(unpacked, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.modules['torch'] = None\n"
        "import fitb; from fitb.cli import main\n"
        "assert fitb.__file__.startswith(sys.argv[1]), fitb.__file__\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'numpy', 'yaml', 'jsonargparse', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert main(['--version']) == 0\n"
        "assert main(['scripts', 'mine']) == 0\n"
        "assert main(['scripts']) == 0\n"
        "from fitb.config.parser import resolve_resource\n"
        "assert resolve_resource('zero2', 'fitb.ds_configs', '.json')\n"
        "assert resolve_resource('tinybert4', 'fitb.presets', '.yaml')\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = ran(sys.executable, "-c", code, unpacked, cwd=tmp_path, env=env, timeout=120)
    assert f"\nfitb {fitb.__version__}\n" in done.stdout  # no commit: this is no checkout
    assert done.stdout.endswith(f"mine\n{unpacked / 'fitb' / 'slurm'}\n")
    example = "site.example.env"
    assert (tmp_path / "mine" / example).read_bytes() == (ROOT / "slurm" / example).read_bytes()
    for script in (ROOT / "slurm").glob("*.sh"):
        assert (tmp_path / "mine" / script.name).read_bytes() == script.read_bytes()
        assert os.access(tmp_path / "mine" / script.name, os.X_OK)


SAME = (
    "fitb --version-of-nothing",
    "fitb train --stepz 3",
    "fitb bench stp",
    "launch.distill --help",
    "launch.distill --nodez 2",
    "launch.distill --nodes two",
    "launch.distill --dry_run --cluster local --chain 2",
    "launch.evaluate --aray 2 --model x",
    "launch.prepare --task 2 --out x",
)


def said(place, launchers, folder):
    """What each line prints and its exit code, where `place` is the folder on Python's path."""
    code = (
        "import contextlib, io, json, runpy, sys\n"
        "place, launchers, *lines = sys.argv[1:]; sys.path.insert(0, place)\n"
        "for line in lines:\n"
        "    module, *sys.argv[1:] = line.split(); out = io.StringIO()\n"
        "    module = launchers + module if module != 'fitb' else module\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):\n"
        "            runpy.run_module(module, run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        print(json.dumps([line, end.code, out.getvalue()]))\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = ran(sys.executable, "-c", code, place, launchers, *SAME, cwd=folder, env=env)
    plain = re.sub(r"\d\d:\d\d:\d\d ", "", done.stdout)
    assert launchers == "" or "python -m fitb.launch.distill --help" in plain
    return [json.loads(line) for line in plain.replace("fitb.launch.", "launch.").splitlines()]


def test_a_wheel_and_a_checkout_say_the_same(unpacked, tmp_path):
    """A mistyped flag of a launcher died of ModuleNotFoundError: a wheel has no module `launch`."""
    found = said(unpacked, "fitb.", tmp_path)
    assert [(line, code) for line, code, _ in found] == [
        (line, 0 if "--help" in line else 93 if "train" in line else 4 if "chain" in line else 2)
        for line in SAME
    ]
    assert found == said(ROOT, "", tmp_path)


def test_the_commit_is_named_in_a_checkout_alone(monkeypatch, tmp_path):
    from fitb.cli import _version

    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "a")
        monkeypatch.setenv(f"{name}_EMAIL", "a@b")
    monkeypatch.setattr("fitb.base.git.ROOT", tmp_path)
    assert _version() == f"fitb {fitb.__version__}"
    ran("git", "init", "--quiet", cwd=tmp_path)
    ran("git", "commit", "--quiet", "--allow-empty", "-m", "one", cwd=tmp_path)
    assert re.fullmatch(rf"fitb {fitb.__version__} \([0-9a-f]{{7,}}\)", _version())


def test_requirements_of_setup_cfg_meet_the_constraints():
    from packaging.requirements import Requirement

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (only,) = pin.specifier
            assert only.operator == "==", line
            pinned[pin.name.lower().replace("_", "-")] = only.version
    lines = setup["options"]["install_requires"]
    extras = setup["options.extras_require"]
    wanted = "\n".join([lines, *(extras[name] for name in extras if name != "plots")])
    for line in filter(None, wanted.splitlines()):
        asked = Requirement(line)
        if asked.name != "fitb":
            version = pinned[asked.name.lower().replace("_", "-")]
            assert asked.specifier.contains(version, prereleases=True), line
