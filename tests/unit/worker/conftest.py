"""What tests of workers share."""

from __future__ import annotations

import pytest
from worker_clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
