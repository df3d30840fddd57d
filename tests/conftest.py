"""Fixtures that more than one test file needs."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data that stands beside a developer's checkout; users do not have it."""
    if not SHARED.is_dir():
        pytest.skip("reference data beside the checkout is absent")
    return SHARED
