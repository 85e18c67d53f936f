"""A model that the Hub gives only to a login is shown, and the process that reads its files never had the login."""

import sys
from pathlib import Path

import psutil
import pytest

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.errors import ModelError
from loratory.engine.inspector.session import Inspector
from tests.hub.published import PublishedHub

MODEL = ModelConfig(id="owner/gated")
DATASET = DatasetConfig(source="sample:lab-chats")


@pytest.fixture
def hub(tiny_model_folder, tmp_path, monkeypatch):
    with PublishedHub() as fake:
        files = [path for path in tiny_model_folder.iterdir() if path.is_file()]
        fake.repositories[MODEL.id] = {path.name: path.read_bytes() for path in files}
        fake.gated.add(MODEL.id)
        monkeypatch.setenv("HF_ENDPOINT", fake.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        yield fake


@pytest.fixture
def inspector(home):
    session = Inspector(home)
    yield session
    session.close()


def test_without_a_login_it_is_refused_with_what_to_do(hub, inspector):
    with pytest.raises(ModelError, match="gated: its owner asks you to accept terms"):
        inspector.preview(DATASET, MODEL, 64, count=1)
    assert hub.tokens == set()


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of a process")
def test_with_a_login_it_is_fetched_by_a_process_that_ends_and_read_by_one_without(hub, inspector, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)

    page = inspector.preview(DATASET, MODEL, 64, count=1)

    assert page.rows[0].sequences
    assert hub.tokens == {f"Bearer {hub.token}"}
    assert inspector.pids
    for pid in inspector.pids:  # one that reads, and perhaps a spare one
        assert hub.token not in Path(f"/proc/{pid}/environ").read_text()
        assert psutil.Process(pid).is_running()
    assert inspector.preview(DATASET, MODEL, 64, count=1).rows[0].sequences, "the copy that is here needs no login"
