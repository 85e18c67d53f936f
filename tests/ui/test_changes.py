"""What an event puts into the form, and what it leaves as a person has set it meanwhile."""

import gradio as gr
import pytest

from loratory.engine.errors import DatasetError
from loratory.ui.backend.models import FitTable
from loratory.ui.page import Page
from loratory.ui.tabs.data import DataTab, _take_path
from loratory.ui.tabs.model import ModelTab
from tests.invented_runs import a_config


@pytest.fixture
def put_in(laid_out):
    """Apply a change to a form that shows a configuration; the settings that the browser is told to alter come back."""
    page: Page = laid_out(DataTab).page

    def put(change, config) -> dict:
        values = page.form.updates(config.model_dump(mode="json"))
        updates = page.change(change, *values)
        return {
            name: updates[page.form[name]]
            for name in page.form.names
            if updates != gr.skip() and page.form[name] in updates
        }

    return put


def test_a_model_that_took_long_to_read_undoes_nothing_that_was_chosen_meanwhile(put_in, laid_out, services):
    tab = laid_out(lambda page: ModelTab(page, FitTable(services.shapes.learn, services.devices)))
    chosen = tab.choose("some/model", "")
    change = chosen[tab.model_change]
    assert chosen[tab.details]

    updates = put_in(change, a_config(dataset__source="sample:lab-chats", training__learning_rate=7e-4))

    assert updates["model.id"] == "some/model"
    assert set(updates) <= {"model.id", "model.revision", "adapter.target_modules", "adapter.warm_start"}
    assert "q_proj" in updates["adapter.target_modules"]["value"]


def test_a_new_source_begins_with_settings_of_its_own(put_in):
    config = a_config(
        dataset__format="alpaca", dataset__column_map={"output": "answer"}, dataset__eval_fraction=0.3,
        dataset__train_on="completion", training__max_length=640,
    )  # fmt: skip

    updates = put_in(_take_path(" other.jsonl "), config)

    assert updates["dataset.source"] == "other.jsonl"
    assert updates["dataset.format"] == "auto"
    assert not updates["dataset.column_map"]
    assert "dataset.eval_fraction" not in updates
    assert "dataset.train_on" not in updates
    assert all(name.startswith("dataset.") for name in updates)


def test_what_could_not_be_read_and_an_empty_path_change_nothing(put_in):
    for nothing in (None, _take_path("  ")):
        assert put_in(nothing, a_config()) == {}


def test_a_source_longer_than_any_name_is_refused_where_it_is_typed():
    with pytest.raises(DatasetError, match=r"at most 1,000 characters; this one has 1,001"):
        _take_path("a" * 1001)
