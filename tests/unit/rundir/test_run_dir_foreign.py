"""A run does not enter a folder whose files it would replace."""

from __future__ import annotations

import pytest
from snapshot import snapshot, touched

from fitb.base.errors import ConfigError
from fitb.base.world import World
from fitb.config import Config
from fitb.training.setup import open_run


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "metrics.jsonl", "export/model.bin", "checkpoints/step-100/a", "attempts/a"],
)
def test_a_folder_of_another_program_is_refused_as_a_run_and_stays(name, tmp_path):
    home = tmp_path / "home"
    (home / name).parent.mkdir(parents=True)
    (home / name).write_text("mine")
    (home / "logs").mkdir()
    before = snapshot(home)
    with pytest.raises(ConfigError, match=f"{name.partition('/')[0]}.*; move that away, or choose"):
        open_run(Config(run_dir=str(home)), World(0, 1, 0))
    assert touched(before, home) == []
    (home / name.partition("/")[0]).rename(tmp_path / "away")
    (home / "notes.txt").write_text("mine")
    for _ in range(2):
        run, _ = open_run(Config(run_dir=str(home)), World(0, 1, 0))
        run.close(0)
    assert (home / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "metrics.jsonl", "export"])
def test_a_link_that_a_run_would_replace_is_refused_and_stays(name, tmp_path):
    """A link to another filesystem was taken for an export whose checkpoints were removed."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    # What a start leaves that was killed before it had a number is no reason to refuse.
    (home / "attempts").mkdir(parents=True)
    (home / "checkpoints" / ".claim-0123456789abcdef" / "token").mkdir(parents=True)
    (home / name).symlink_to(elsewhere)
    with pytest.raises(ConfigError, match=f"{name} is a link.*remove it"):
        open_run(Config(run_dir=str(home)), World(0, 1, 0))
    assert (home / name).readlink() == elsewhere
    (home / name).unlink()
    run, _ = open_run(Config(run_dir=str(home)), World(0, 1, 0))
    assert run.attempt == 1
    run.close(0)
