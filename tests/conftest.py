"""Fixtures that every room shares."""

import os
from pathlib import Path

import pytest

# No test may ask a hub, a tracker or a browser for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Processes beside this one would otherwise slow it down tenfold; see engine.processes.spawn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from engine.paths import LoratoryHome

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def home(tmp_path, monkeypatch) -> LoratoryHome:
    """An empty Loratory home of its own for each test."""
    root = tmp_path / "home"
    monkeypatch.setenv("LORATORY_HOME", str(root))
    return LoratoryHome.from_environment()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    """A saved Llama of two layers with a tokenizer; read-only."""
    from tests.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def demo_home(tmp_path_factory) -> LoratoryHome:
    """A home that holds the demo model; kept between sessions where LORATORY_TEST_HOME names a folder."""
    from engine.config.model import ModelConfig
    from engine.models.source import resolve_model

    root = Path(os.environ.get("LORATORY_TEST_HOME") or tmp_path_factory.mktemp("demo-home"))
    demo = LoratoryHome(root)
    demo.make_writable()
    resolve_model(ModelConfig(id="smollm2-135m-instruct"), demo)
    return demo


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Reference data that stands beside a maintainer's checkout."""
    if not SHARED.is_dir():
        pytest.skip("the shared reference data is not beside this checkout")
    return SHARED
