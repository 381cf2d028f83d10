# Part of MemQ. SPDX-License-Identifier: Apache-2.0

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import MEMQ, Server  # noqa: E402


def pytest_configure():
    assert MEMQ.exists(), f"{MEMQ} is missing: build first (scripts/test does), or set MEMQ_BIN"


@pytest.fixture
def folder():
    """An empty folder that goes with the test."""
    path = Path(tempfile.mkdtemp(prefix="memq-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def server(folder):
    """A fresh server on a data folder of its own."""
    with Server(folder / "data") as running:
        yield running


@pytest.fixture(scope="module")
def shared_server():
    """One server for all tests of a file; they use topics of their own."""
    path = Path(tempfile.mkdtemp(prefix="memq-test-"))
    with Server(path / "data") as running:
        yield running
    shutil.rmtree(path, ignore_errors=True)
