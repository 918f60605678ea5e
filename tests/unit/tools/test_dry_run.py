"""What scripts and launchers print when they are to do nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from executable import executable

from fitb.cli import main
from fitb.config import Config
from fitb.config.parser import parse
from fitb.config.yaml import to_yaml
from fitb.corpus.slurm_stages import dry_run as stages
from fitb.corpus.slurm_stages import launcher_arguments
from fitb.tools import dry_run

ROOT = Path(__file__).resolve().parents[3]
DISTILL = ROOT / "slurm" / "distill.sh"


def shown(capsys, *args):
    return dry_run.main(args), *capsys.readouterr()


def test_script_is_printed_as_it_is_with_the_configuration_that_training_would_have(
    capsys, monkeypatch
):
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SBATCH_QOS", "read-too-late")
    flags = ["--config", "tinybert4", "--steps", "7"]
    words = ["distill", str(DISTILL), "SBATCH_ACCOUNT", "--dry-run", *flags]
    code, out, _ = shown(capsys, *words)
    assert code == 0
    script, _, rest = out.partition("\n# -- options that hold")
    assert script == DISTILL.read_text()
    assert "#   --account=mine " in rest and "read-too-late" not in rest
    config = parse(Config, "test", ["--run_dir", "runs/fitb-distill", *flags])
    assert rest.partition("# -- fitb train\n")[2] == to_yaml(config)


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("distill", ["--stepz", "1"], "nearest: steps"),
        ("distill", ["--steps", "many"], "steps"),
        ("distill", ["--global_batch", "4", "--micro_batch", "2"], "8 processes"),
        ("distill", ["--ds_config", "none"], "'none'"),
        ("evaluate", ["--modell", "x"], "nearest: model"),
        ("prepare", ["--source", "texts"], "texts"),
        ("prepare", ["--outt", "x"], "nearest: out"),
    ],
)
def test_what_would_be_refused_is_refused_and_nothing_is_printed(capsys, kind, flags, message):
    code, out, err = shown(capsys, kind, str(ROOT / "slurm" / f"{kind}.sh"), "", *flags)
    assert (code, out) == (2, "") and message in err


@pytest.mark.parametrize("spelling", dry_run.SPELLINGS)
def test_script_in_a_shell_prints_and_leaves_nothing(tmp_path, spelling):
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    env |= {"FITB_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    script = ROOT / "slurm" / "evaluate.sh"
    words = ["bash", str(script), spelling, "--model", "m", "--shards", "s"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(script.read_text())
    assert yaml.safe_load(done.stdout.partition("# -- fitb evaluate\n")[2])["model"] == "m"
    assert not list(tmp_path.iterdir())


def test_stages_of_a_preparation_are_shown_to_the_letter(tmp_path, monkeypatch, capsys):
    executable(tmp_path / "srun", "exit 0")
    executable(tmp_path / "sbatch", "echo job 7")
    site = tmp_path / "site.env"
    site.write_text("export FITB_APPTAINER=/i.sif SBATCH_QOS=mine SBATCH_PARTITION=p\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("FITB_SITE", str(site))
    for name in ("SBATCH_QOS", "SBATCH_PARTITION", "FITB_APPTAINER"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    text = tmp_path / "text"
    text.write_text("One document.\n")
    out = tmp_path / "out"
    flags = ["--cluster", "slurm", "--tasks", "5", "--partition", "cpu"]
    flags += ["--out", str(out), "--source", "text", "--files+", str(text)]
    before = sorted(tmp_path.rglob("*"))
    printed = stages(*launcher_arguments().split(flags))
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["launch.prepare", *flags, "--dry-run"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["launch.prepare", *flags]) == 0
    scripts = sorted(tmp_path.glob(".out.work/stages/*/7_submission.sh"))
    assert len(scripts) == 4
    for script in scripts:
        of_before = re.sub("JOB_OF_[A-Z]*", "7", printed)
        assert f"\n{script.read_text()}\n" in of_before
    assert f"\n. {site}\n" in printed
    assert " apptainer exec --nv /i.sif python -u -m submitit" in printed
    assert os.environ["SBATCH_QOS"] == "mine" and "SBATCH_PARTITION" not in os.environ
