"""What the tests of the batch scripts share."""

from __future__ import annotations

import pytest
from batching import Batch


@pytest.fixture
def batch(tmp_path):
    return Batch(tmp_path)
