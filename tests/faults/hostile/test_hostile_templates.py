"""Chat templates written to stop this program: each is answered soon with its cause, and others notice nothing."""

import json
import re
import shutil
import sys

import pytest

from engine.config.dataset import DatasetConfig
from engine.config.model import ModelConfig
from engine.errors import ModelLimitError
from engine.inspector.session import Inspector
from engine.paths import LoratoryHome
from tests.faults.hostile.templates import TEMPLATES
from tests.faults.hostile.watched import attack, require_survived
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits are those of Linux")

ROWS = 100


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A home with a dataset."""
    home = LoratoryHome(tmp_path_factory.mktemp("attacked") / "home")
    home.make_writable()
    rows = [{"instruction": f"Question of row {n:03d}?", "output": f"Answer {n}."} for n in range(ROWS)]
    (home.root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


@pytest.fixture(scope="module")
def inspector(place, good_model, dataset):
    session = Inspector(place)
    session.preview(dataset, good_model, 64, count=1)
    yield session
    session.close()


@pytest.fixture(scope="module")
def dataset(place):
    return DatasetConfig(source=str(place.root / "rows.jsonl"))


@pytest.fixture(scope="module")
def good_model(tmp_path_factory):
    return ModelConfig(id=str(make_tiny_model(tmp_path_factory.mktemp("good") / "good-model")))


@pytest.fixture
def hostile_model(good_model, tmp_path):
    """Makes a copy of the good model with another template."""

    def make(template: str) -> ModelConfig:
        folder = tmp_path / "hostile-model"
        shutil.copytree(good_model.id, folder)
        (folder / "chat_template.jinja").write_text(template)
        return ModelConfig(id=str(folder))

    return make


def shown(page) -> str:
    return " ".join(row.problem or "" for row in page.rows)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template_is_answered_with_its_cause_and_delays_nobody(
    name, inspector, dataset, good_model, hostile_model
):
    template, words = TEMPLATES[name]
    model = hostile_model(template)

    came = attack(
        inspector,
        lambda: shown(inspector.preview(dataset, model, 64, count=3)),
        lambda: good_page(inspector, dataset, good_model),
    )

    print(name, came)
    require_survived(came)
    assert re.search(words, came.message), came.message


def good_page(inspector, dataset, model) -> None:
    page = inspector.preview(dataset, model, 64, count=3)
    assert all(row.sequences and not row.problem for row in page.rows)


@pytest.mark.parametrize("template", ["{{ 'a' * 10**10 }}", "{{ 10 ** (10 ** 9) }}"], ids=["in_python", "in_c"])
def test_a_template_that_overran_is_refused_at_once_until_its_file_changes(
    template, inspector, dataset, good_model, hostile_model
):
    model = hostile_model(template)
    with pytest.raises(ModelLimitError, match="hostile-model"):
        inspector.preview(dataset, model, 64, count=1)

    came = attack(
        inspector,
        lambda: shown(inspector.preview(dataset, model, 64, count=1)),
        lambda: good_page(inspector, dataset, good_model),
    )
    assert "hostile-model" in came.message
    assert came.seconds < 1.0

    shutil.copy(f"{good_model.id}/chat_template.jinja", f"{model.id}/chat_template.jinja")
    good_page(inspector, dataset, model)


def test_a_template_that_overruns_at_row_57_of_a_check_ends_the_check(inspector, dataset, good_model, hostile_model):
    model = hostile_model(
        "{% for m in messages %}{% if 'row 057' in m['content'] %}{{ 'a' * 10**10 }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    good_page(inspector, dataset, model)

    came = attack(
        inspector,
        lambda: str(inspector.check(dataset, model, 64).kept),
        lambda: good_page(inspector, dataset, good_model),
    )

    require_survived(came)
    assert "The chat template of hostile-model needs more memory" in came.message
