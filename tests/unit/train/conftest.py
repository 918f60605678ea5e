"""A run's configuration without the parts that need a model."""

from __future__ import annotations

import pytest

from fitb.config import Config, TrackConfig


@pytest.fixture
def make_config(tmp_path):
    def make(**changes):
        settings = {"run_dir": str(tmp_path / "run"), "track": TrackConfig(wandb="disabled")}
        return Config(**(settings | changes))

    return make
