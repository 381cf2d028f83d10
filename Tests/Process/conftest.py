# Part of MemQ. SPDX-License-Identifier: Apache-2.0

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytest.register_assert_rewrite("interop")

from harness import MEMQ, ROOT, Server  # noqa: E402


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


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """A copy with stubs of its own: the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(
        ROOT / "Examples/python", folder / "Examples/python", ignore=shutil.ignore_patterns("build", "__pycache__")
    )
    shutil.copytree(ROOT / "proto", folder / "proto")
    made = subprocess.run(
        [sys.executable, "make_stubs.py"], cwd=folder / "Examples/python", capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    return folder / "Examples/python"
