"""An inspector with a dataset and a good model, to be attacked."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.config.dataset import DatasetConfig
from engine.config.model import ModelConfig
from engine.inspector.session import Inspector
from engine.paths import LoratoryHome
from tests.faults.hostile.watched import wait_until_calm
from tests.tiny_model import make_tiny_model

ROWS = 100


@dataclass(frozen=True)
class Target:
    """What is attacked, and what must go on meanwhile."""

    inspector: Inspector
    dataset: DatasetConfig
    good_model: ModelConfig

    def preview(self, model: ModelConfig, count: int = 3) -> str:
        """Ask for a page; returns what is wrong with its rows."""
        page = self.inspector.preview(self.dataset, model, 64, count=count)
        return " ".join(row.problem or "" for row in page.rows)

    def good_page(self) -> None:
        """Ask for a page of the good model, which has nothing wrong with it."""
        page = self.inspector.preview(self.dataset, self.good_model, 64, count=3)
        assert all(row.sequences and not row.problem for row in page.rows)


@pytest.fixture(scope="session")
def attacked(tmp_path_factory) -> Iterator[Target]:
    """One inspector for all attacks, as a server has it."""
    home = LoratoryHome(tmp_path_factory.mktemp("attacked") / "home")
    home.make_writable()
    rows = [{"instruction": f"Question of row {n:03d}?", "output": f"Answer {n}."} for n in range(ROWS)]
    data = home.root / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ModelConfig(id=str(make_tiny_model(tmp_path_factory.mktemp("good") / "good-model")))
    inspector = Inspector(home)
    made = Target(inspector, DatasetConfig(source=str(data)), model)
    made.good_page()
    yield made
    inspector.close()


@pytest.fixture
def target(attacked) -> Target:
    """The same when nothing that an earlier attack ended is still starting."""
    wait_until_calm(attacked.inspector, attacked.good_page)
    return attacked


@pytest.fixture
def hostile_model(attacked, tmp_path) -> Callable[..., ModelConfig]:
    """Makes a copy of the good model with other files in it, given as text, bytes or what makes them."""

    def make(**files: str | bytes | Callable[[Path], None]) -> ModelConfig:
        folder = tmp_path / "hostile-model"
        shutil.copytree(attacked.good_model.id, folder)
        for name, content in files.items():
            path = folder / name.replace("__", "/").replace("_json", ".json").replace("_jinja", ".jinja")
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                path.write_text(content)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path)
        return ModelConfig(id=str(folder))

    return make
