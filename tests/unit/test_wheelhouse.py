"""The wheelhouse against a registry of a few made-up wheels."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from executable import ran
from snapshot import snapshot, touched

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("wheelhouse", ROOT / "container" / "wheelhouse.py")
wheelhouse = importlib.util.module_from_spec(SPEC)
sys.modules["wheelhouse"] = wheelhouse  # dataclasses look their module up
SPEC.loader.exec_module(wheelhouse)

HERE = "manylinux_2_28_x86_64"
NEW = wheelhouse.Target("3.12", HERE)
PINS = """# pinned
alpha==1.0
beta==2.0; python_version >= "3.11"
gamma==3.0
torch==2.13.0
"""


def wheel(folder, name, version="1.0", tag="py3-none-any", requires=()):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\n")
    return path


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Wheels to fetch, in place of pip; which requirements were asked for, in waves."""
    folder, waves = tmp_path / "registry", []

    def fetch(wanted, target, out):
        waves.append(sorted(wanted))
        for one in wanted:
            name = re.match(r"\w+", one)[0]
            version = one.partition("==")[2] or "*"
            for path in folder.glob(f"{name}-{version}-*.whl"):
                shutil.copyfile(path, out / path.name)

    def pip(*words, **_):
        requires = [
            "alpha>=1",
            'beta>=2; extra == "more"',
            'gamma; python_version < "3.11"',
            "torch>=2",
        ]
        wheel(Path(words[words.index("--wheel-dir") + 1]), "fitb", "0.1.0", requires=requires)

    monkeypatch.setattr(wheelhouse, "fetch", fetch)
    monkeypatch.setattr(wheelhouse, "pip", pip)
    monkeypatch.setattr(wheelhouse, "ROOT", tmp_path)
    (tmp_path / "constraints.txt").write_text(PINS)
    wheel(folder, "alpha", requires=['delta>=1; sys_platform == "linux"', 'gamma; os_name == "nt"'])
    wheel(folder, "beta", "2.0", requires=["alpha[extra]"])
    wheel(folder, "gamma", "3.0")
    wheel(folder, "delta")
    wheel(folder, "torch", "2.13.0")
    wheel(folder, "torch", "2.13.0+cpu")
    return folder, waves


def names(paths):
    return [path.name.split("-py3")[0] for path in paths]


def test_everything_that_is_required_there_is_fetched_in_waves(registry, tmp_path):
    found = wheelhouse.collect(NEW, "more", "cpu", tmp_path / "out")
    assert names(found) == ["alpha-1.0", "beta-2.0", "delta-1.0", "fitb-0.1.0", "torch-2.13.0+cpu"]
    assert registry[1] == [["alpha==1.0", "beta==2.0", "torch==2.13.0+cpu"], ["delta>=1"]]


def test_markers_are_those_of_the_python_that_the_wheels_are_for(registry, tmp_path):
    old = wheelhouse.Target("3.10", HERE)
    found = wheelhouse.collect(old, "none", "none", tmp_path / "out")
    assert names(found) == ["alpha-1.0", "delta-1.0", "fitb-0.1.0", "gamma-3.0"]


def test_what_is_there_is_not_fetched_again_and_what_is_not_needed_goes(registry, tmp_path):
    out = tmp_path / "out"
    old = wheel(out, "fitb", "0.0.9"), wheel(out, "alpha", "0.9"), wheel(out, "other")
    wheelhouse.write_sums({path.name: wheelhouse.digest_of(path) for path in old}, out)
    first = wheelhouse.collect(NEW, "none", "none", out)
    registry[1].clear()
    assert wheelhouse.collect(NEW, "none", "none", out) == first
    assert registry[1] == []
    assert sorted(out.glob("*.whl")) == first
    assert list(wheelhouse.read_sums(out)) == [path.name for path in first]


@pytest.mark.parametrize("name", ["other", "fitb", "listed", "SHA256SUMS"])
def test_what_somebody_else_put_into_the_folder_is_in_the_way_and_stays(registry, tmp_path, name):
    out = tmp_path / "out"
    theirs = wheel(out, name) if name != "SHA256SUMS" else out / name
    if name == "SHA256SUMS":
        out.mkdir()
        theirs.write_text("0 of my thesis\n")
    if name == "listed":
        wheelhouse.write_sums({theirs.name: "0" * 64}, out)  # once it was another
    before = snapshot(theirs)
    with pytest.raises(SystemExit, match="move it away, or name another --out"):
        wheelhouse.collect(NEW, "none", "none", out)
    assert touched(before, theirs) == []
    theirs.rename(tmp_path / theirs.name)
    assert wheelhouse.collect(NEW, "none", "none", out)


def test_a_wheelhouse_that_was_interrupted_knows_what_it_fetched(registry, tmp_path, monkeypatch):
    out, look = tmp_path / "out", wheelhouse.look

    def interrupted(at_hand, *rest):
        if len(at_hand) > 1:
            raise KeyboardInterrupt
        return look(at_hand, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(wheelhouse, "look", interrupted)
        wheelhouse.collect(NEW, "more", "cpu", out)
    assert len(list(out.glob("*.whl"))) > 3
    found = wheelhouse.collect(NEW, "none", "none", out)  # needs fewer of them
    assert sorted(out.glob("*.whl")) == found


def test_a_module_that_is_gone_does_not_come_from_an_older_build(registry, tmp_path):
    gone = tmp_path / "build" / "lib" / "fitb" / "gone.py"
    gone.parent.mkdir(parents=True)
    gone.touch()
    wheelhouse.collect(NEW, "none", "none", tmp_path / "out")
    assert not gone.exists()


def test_a_pin_that_breaks_a_requirement_ends_it(registry, tmp_path):
    wheel(registry[0], "alpha", requires=["delta>=7"])
    with pytest.raises(SystemExit, match="alpha asks for delta>=7; 1.0 is pinned"):
        wheelhouse.collect(NEW, "none", "none", tmp_path / "out")


def test_a_wheel_that_the_target_would_not_take_ends_it(registry, tmp_path):
    (registry[0] / "delta-1.0-py3-none-any.whl").unlink()
    wheel(registry[0], "delta", tag="cp311-cp311-manylinux_2_17_x86_64")
    with pytest.raises(SystemExit, match="does not fit"):
        wheelhouse.collect(NEW, "none", "none", tmp_path / "out")


@pytest.mark.parametrize(
    ("tag", "fits"),
    [
        ("py3-none-any", True),
        ("cp312-cp312-manylinux_2_28_x86_64", True),
        ("cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64", True),
        ("cp310-abi3-manylinux1_x86_64", True),
        ("py3-none-linux_x86_64", True),
        ("cp312-cp312-manylinux_2_34_x86_64", False),
        ("cp312-cp312-manylinux_2_28_aarch64", False),
        ("cp312-cp312-musllinux_1_2_x86_64", False),
        ("cp312-cp312t-manylinux_2_28_x86_64", False),
        ("cp313-cp313-manylinux_2_28_x86_64", False),
        ("cp313-abi3-manylinux_2_28_x86_64", False),
    ],
)
def test_a_wheel_fits_where_pip_would_take_it(tag, fits):
    assert wheelhouse.fits(Path(f"alpha-1.0-{tag}.whl"), NEW, {}) is fits


def test_pins_are_those_of_the_target_and_of_the_build_of_torch():
    assert wheelhouse.pins(PINS, wheelhouse.Target("3.10", HERE), "default") == {
        "alpha": "alpha==1.0",
        "gamma": "gamma==3.0",
        "torch": "torch==2.13.0",
    }
    assert wheelhouse.pins(PINS, NEW, "cu130")["torch"] == "torch==2.13.0+cu130"
    assert wheelhouse.pins(PINS, NEW, "none")["beta"] == "beta==2.0"


def test_a_version_or_an_interpreter_says_which_python():
    assert wheelhouse.version_of("3.13") == "3.13"
    assert wheelhouse.version_of(sys.executable) == ".".join(map(str, sys.version_info[:2]))


def test_sums_are_read_by_sha256sum(tmp_path):
    paths = [wheel(tmp_path, "alpha"), wheel(tmp_path, "beta")]
    wheelhouse.write_sums({path.name: wheelhouse.digest_of(path) for path in paths}, tmp_path)
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    ran(*check, cwd=tmp_path)
    paths[0].write_bytes(b"another")
    ran(*check, cwd=tmp_path, code=1)


def test_make_hands_its_variables_on():
    make = ["make", "--dry-run", "--no-print-directory", "wheelhouse"]
    make += ["PYTHON=3.12", "EXTRAS=serve", "TORCH=cpu"]
    command = re.sub(r"\\\n", " ", ran(*make, cwd=ROOT).stdout).split()
    expected = ["--python", "3.12", "--out", "wheelhouse", "--extras", "serve", "--torch", "cpu"]
    assert command == ["python3", "container/wheelhouse.py", *expected]
