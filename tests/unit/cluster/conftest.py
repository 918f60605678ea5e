"""What the tests of the batch scripts share."""

from __future__ import annotations

from pathlib import Path

import pytest
from batching import Batch


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)
