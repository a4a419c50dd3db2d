"""Fixtures shared by all tests: the shipped samples and, where present, the development scans beside the checkout."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the development scans, which do not ship with the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"development scans are not beside this checkout ({folder.name} folder absent)")
    return folder
