"""Another process that holds a device for as long as a test asks."""

import subprocess
import sys

import pytest

from loratory.engine.processes.liveness import ProcessIdentity


@pytest.fixture(scope="session")
def another_process():
    """Start a process that does nothing, and lives longer than the test."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = ProcessIdentity.from_pid(process.pid)
    assert identity is not None
    yield identity
    process.kill()
    process.communicate()
