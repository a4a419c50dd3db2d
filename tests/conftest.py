"""Fixtures shared by all tests: the shipped samples and, where present, the development scans beside the checkout."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share the cores: more threads than cores wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the development scans, which do not ship with the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"development scans are not beside this checkout ({folder.name} folder absent)")
    return folder
