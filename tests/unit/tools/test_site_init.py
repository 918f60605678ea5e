"""`fitb site init`: what it finds, how it writes it, and what it leaves alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from executable import executable

from fitb.cli import main
from fitb.tools.site_init import Found, Partition, render

ROOT = Path(__file__).resolve().parents[3]
GPU = Partition("gpu", True, "2-00:00:00", 8, 128, 8)
CPU = Partition("cpu", False, "01:00:00", 90, 64)

ANSWERS = {
    "scontrol": """case "$2" in
config) printf 'AccountingStorageType = accounting_storage/slurmdbd\\nJobRequeue = 1\\n' ;;
partition) cat <<'END'
PartitionName=cpu
   Default=NO MaxTime=UNLIMITED
PartitionName=gpu
   Default=YES MaxTime=02:00:00 DefaultTime=NONE
END
;; esac""",
    "sinfo": "printf 'gpu|8|128|gpu:a100:8(S:0-1)\\ngpu|1|64|gpu:4\\ncpu|90|64+|(null)\\n'",
    "sacctmgr": "printf 'nlp|normal,long\\nnlp|normal\\n|\\nnonsense\\n'",
    "sbatch": "exit 0",
    "srun": "exit 0",
    "munge": "exit 0",
}


def in_bash(text, *names):
    """What bash has in these variables after reading a file."""
    script = "set -eu\n" + text + "\nprintf '%s\\n' " + " ".join(f'"${{{n}-}}"' for n in names)
    env = {"PATH": os.environ["PATH"], "USER": "me"}
    text = subprocess.check_output(["bash", "-c", script], env=env, text=True)
    return text.split("\n")[: len(names)]


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder that is the PATH, but for bash and its tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "env", "cat", "printf"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_example_is_the_file_where_nothing_was_found():
    text = render(Found())
    assert (ROOT / "slurm" / "site.example.env").read_text() == text
    (line,) = [line for line in text.splitlines() if line and line[0] != "#"]
    assert line.startswith("export FITB_SITE=")


def test_one_account_and_a_default_partition_with_gpus_are_set():
    text = render(Found((GPU, CPU), ("nlp",), ("normal", "long"), "/py"))
    names = ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_TIMELIMIT", "FITB_PYTHON")
    assert in_bash(text, *names) == ["nlp", "gpu", "", "", "/py"]
    assert "at most 2-00:00:00; 8 hosts, of 8 GPUs and 128 CPUs, 16 CPUs to a GPU" in text
    assert "sbatch --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=16 slurm" in text
    assert "partition cpu: at most 01:00:00; 90 hosts without GPUs" in text
    short = render(Found((replace(GPU, limit="02:00:00"),)))  # than slurm/distill.sh asks for
    assert in_bash(short, "SBATCH_TIMELIMIT") == ["02:00:00"]


def test_of_several_accounts_none_is_chosen_and_gpus_outweigh_the_default():
    text = render(Found((replace(CPU, default=True), replace(GPU, default=False)), ("a", "b")))
    assert in_bash(text, "SBATCH_ACCOUNT", "SBATCH_PARTITION") == ["", "gpu"]
    assert "# accounts of this user: a, b\n# export SBATCH_ACCOUNT=a\n" in text


@pytest.mark.parametrize("word", ["two words", "$(touch x)", "it's", 'a"b', "a;b", "`x`", "a\\b"])
def test_words_reach_the_shell_as_they_are(word):
    text = render(Found((replace(GPU, name=word),), (word,), (word,), word))
    assert in_bash(text, "SBATCH_ACCOUNT", "SBATCH_PARTITION", "FITB_PYTHON") == [word] * 3
    text = render(Found(missing=(f"sinfo failed:\n{word}",)))
    assert f"# not found: sinfo failed: {word}\n" in text


def test_command_writes_what_slurm_says_and_never_over_a_file(path, tmp_path, capsys):
    for name, text in ANSWERS.items():
        executable(path / name, text)
    assert main(["site", "init", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == "slurm/site.env" and found["missing"] == []
    assert found["accounts"] == ["nlp"] and found["qos"] == ["normal", "long"]
    assert found["partitions"][0] == {
        "name": "gpu", "default": True, "limit": "02:00:00", "hosts": 9, "cpus": 128, "gpus": 8,
        "option": "",
    }  # fmt: skip
    file = tmp_path / "slurm" / "site.env"
    file.write_text("mine")
    assert main(["site", "init"]) == 2
    assert "--force" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main(["site", "init", "--force"]) == 0
    assert "export SBATCH_ACCOUNT=nlp\n" in file.read_text()
    assert "partition gpu (the default)" in capsys.readouterr().out


def test_command_says_so_where_there_is_no_slurm(path, tmp_path, capsys):
    assert main(["site", "init"]) == 0
    assert "not found: no Slurm here" in capsys.readouterr().out
    assert "# not found: no Slurm here" in (tmp_path / "slurm" / "site.env").read_text()
