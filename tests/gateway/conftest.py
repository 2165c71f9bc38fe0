"""The fixture that most tests of the gateway start from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.serving import Serving, serving


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Serving]:
    """A gateway that cuts files into chunks of 1,000 bytes."""
    async with serving(str(tmp_path)) as served:
        yield served
