"""Who may import whom: the contract of setup.cfg, and what it cannot say."""

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest
from executable import ran

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fitb"
NO_LAYER = {"__init__", "__main__", "presets"}  # they hold nothing to import
WITHOUT_TORCH = (
    *("base", "config", "shards", "rundir", "cluster", "corpus", "cli"),
    *("tools/doctor", "tools/rehearse", "tools/report"),
)
HEAVY = {"torch", "transformers", "deepspeed", "wandb"}
# What a room may see of fitb besides itself, where the order of layers does not say it.
SEES = {
    "cluster": {"cluster", "rundir", "config", "base"},
    "data": {"data", "shards", "config", "base"},
    "infer": {"infer", "model", "corpus", "config", "base"},
}
OFFERED = ("prepare", "distill", "train", "evaluate", "load", "fill")  # functions of `import fitb`


def modules_of(room):
    found = sorted((PACKAGE / room).glob("*.py"))
    assert found, room
    return found


def imports_of(path, top_level_only=False):
    """Dotted names that a module imports at run time; not what only type checkers see."""
    todo = list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not (top_level_only and isinstance(node, (ast.FunctionDef, ast.Lambda))):
            todo += ast.iter_child_nodes(node)


def test_the_contract_of_layers_is_kept():
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    ran(sys.executable, "-c", code, cwd=ROOT, timeout=120)


def test_every_module_has_a_layer():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = set(re.findall(r"fitb\.(\w+)", config["importlinter:contract:layers"]["layers"]))
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - NO_LAYER <= layers


@pytest.mark.parametrize("room", SEES)
def test_a_room_sees_only_what_lies_below_it(room):
    for path in modules_of(room):
        seen = {name.split(".")[1] for name in imports_of(path) if name.startswith("fitb.")}
        assert seen <= SEES[room], path


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_a_room_that_must_work_without_torch_imports_none_of_it(room):
    for path in modules_of(room):
        found = imports_of(path, top_level_only=room != "cluster")  # which needs it nowhere
        assert not {name.split(".")[0] for name in found} & HEAVY, path


def test_no_room_or_module_takes_the_name_of_a_function_that_fitb_will_offer():
    code = f"""
import importlib, pkgutil, fitb
for found in pkgutil.walk_packages(fitb.__path__, "fitb."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
taken = [name for name in {OFFERED} if hasattr(fitb, name)]
assert not taken, taken
"""
    ran(sys.executable, "-c", code, timeout=240)


def every_import(path):
    """Modules of fitb that a module imports anywhere, functions included."""
    for name in imports_of(path):
        if name.startswith("fitb."):
            yield name if name in MODULES else name.rpartition(".")[0]


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def test_no_circle_of_imports_hides_in_functions():
    waits_for = {
        name: {other for other in every_import(path) if other in MODULES and other != name}
        for name, path in MODULES.items()
    }
    while free := [name for name, others in waits_for.items() if not others]:
        for name in free:
            del waits_for[name]
        for others in waits_for.values():
            others.difference_update(free)
    assert not waits_for


# Why modules import another room inside a function.
INSIDE_FUNCTIONS = {
    "cli": "help, and errors of flags, come without torch",
    "tools": "a command loads what it needs; the doctor starts where libraries are missing",
    "fitb.bench.scorers": "onnxruntime belongs to an extra",
    "fitb.bench.text": "only where no shards are given",
    "fitb.cluster.slurm": "the doctor imports it where the parser's libraries are missing",
}


def test_imports_of_other_rooms_inside_functions_have_a_reason_each():
    found = set()
    for name, path in MODULES.items():
        room = name.split(".")[1] if "." in name else ""
        top = set(imports_of(path, top_level_only=True))
        inside = {other.split(".")[1] for other in set(imports_of(path)) - top if "fitb." in other}
        if inside - {room}:
            found.add(room if room in INSIDE_FUNCTIONS else name)
    assert found == set(INSIDE_FUNCTIONS)
