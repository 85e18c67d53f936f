"""Downloads with a person's own token that wait for their files, so a test can look or stop meanwhile."""

import threading
from pathlib import Path

import psutil
import pytest

from engine.processes.messages import CancelledRequestError
from tests.models.fake_hub import FakeHub
from tests.runs.supervision import wait_until


class PausingHub(FakeHub):
    """Holds files back until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()

    def _answer_file(self, *args, **options):
        self.go.wait(300)
        super()._answer_file(*args, **options)

    def replace_the_real_one(self, monkeypatch, cache: Path) -> None:
        """Let processes that begin now ask this one, without a login."""
        monkeypatch.setenv("HF_ENDPOINT", self.address)
        monkeypatch.setenv("HF_HOME", str(cache))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)


def require_hidden_token(hub: PausingHub, job, token: str, folder: Path) -> None:
    """Run a download, and look for its token in processes meanwhile and in files afterwards."""
    hub.go.clear()
    ended = []
    assert token not in repr(job)
    thread = threading.Thread(target=lambda: ended.append(job.run()))
    thread.start()
    wait_until(lambda: bool(hub.tokens))
    for process in psutil.process_iter():
        for name in ("environ", "cmdline"):
            try:
                assert token.encode() not in Path(f"/proc/{process.pid}/{name}").read_bytes(), name
            except OSError:
                continue
    hub.go.set()
    thread.join()

    assert ended
    assert hub.tokens == {f"Bearer {token}"}
    for path in folder.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path
    assert job.token.get_secret_value() == ""


def stop_midway(hub: PausingHub, job) -> None:
    """Run a download, and stop it while it waits for a file."""
    hub.go.clear()
    ended = []

    def run():
        with pytest.raises(CancelledRequestError):
            job.run()
        ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: bool(hub.tokens))
    job.stop()
    thread.join(300)
    hub.go.set()
    assert ended
