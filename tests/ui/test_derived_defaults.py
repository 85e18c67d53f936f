"""Defaults on the page follow the rest of the form until a person sets them."""

import json

import pytest

from loratory.engine.config.methods.registry import METHODS
from loratory.ui.backend.dataset_checks import CheckQuestion, question_of
from loratory.ui.page import Page
from loratory.ui.tabs.start import start_key
from loratory.ui.tabs.train import TrainTab
from loratory.ui.views.memory import render_side_panel
from tests.invented_runs import a_config
from tests.ui.form_visitor import FormVisitor
from tests.waiting import wait_until


@pytest.fixture
def page(laid_out) -> Page:
    return laid_out(TrainTab).page


@pytest.fixture
def visitor(page) -> FormVisitor:
    return FormVisitor(page)


def value_of(visitor: FormVisitor, name: str) -> object:
    """Return the value of a component, which the browser shows."""
    return visitor.values[visitor.page.form[name]]


def choose(visitor: FormVisitor, method: str) -> None:
    visitor.set_by_hand(adapter__method=method)
    visitor.refresh()


def test_an_untouched_learning_rate_follows_the_method_on_the_page_and_in_the_draft(visitor):
    for method in ("ia3", "none", "lora"):
        visitor.set_by_hand(adapter__method=method)

        # At once in what would be started, whatever the box still shows.
        assert visitor.mapping["training"]["learning_rate"] == METHODS[method].learning_rate
        visitor.refresh()
        assert value_of(visitor, "training.learning_rate") == METHODS[method].learning_rate


def test_a_value_that_a_person_set_stays_also_after_a_reload(visitor, page):
    visitor.set_by_hand(training__learning_rate=3e-4)
    visitor.refresh()
    choose(visitor, "ia3")
    assert value_of(visitor, "training.learning_rate") == 3e-4

    stored_config = visitor.values[page.saved_draft]
    other = FormVisitor(page)
    other.take(page.restore_draft(json.loads(json.dumps(stored_config))))
    choose(other, "none")
    assert value_of(other, "training.learning_rate") == 3e-4
    assert other.mapping["training"].get("early_stopping_patience") is None  # of full fine-tuning, as no one set it


def test_a_default_typed_by_hand_after_another_value_is_the_persons(visitor):
    for typed in (3e-4, 2e-4):
        visitor.set_by_hand(training__learning_rate=typed)
        visitor.refresh()
    choose(visitor, "ia3")

    assert value_of(visitor, "training.learning_rate") == 2e-4


def test_an_emptied_box_stays_empty(visitor):
    assert value_of(visitor, "training.early_stopping_patience") == "3"
    visitor.set_by_hand(training__early_stopping_patience="")
    visitor.refresh()
    choose(visitor, "ia3")

    assert value_of(visitor, "training.early_stopping_patience") == ""
    assert "early_stopping_patience" not in visitor.mapping["training"]
    visitor.change({"training": {"max_length": 144}})
    visitor.undo()
    assert value_of(visitor, "training.early_stopping_patience") == ""


def test_a_wrong_setting_elsewhere_makes_nothing_a_persons(visitor):
    visitor.set_by_hand(adapter__r=0)
    visitor.refresh()
    choose(visitor, "ia3")
    visitor.set_by_hand(adapter__r=16)
    visitor.refresh()

    assert value_of(visitor, "training.learning_rate") == METHODS["ia3"].learning_rate


def test_what_a_preset_or_a_run_has_stays_until_what_it_follows_changes(visitor):
    visitor.fill(a_config(training__learning_rate=1e-3).model_dump(mode="json"))
    choose(visitor, "ia3")
    assert value_of(visitor, "training.learning_rate") == 1e-3

    visitor.fill({"model": {"id": "some/model"}, "adapter": {"method": "none"}})
    visitor.refresh()
    assert value_of(visitor, "training.learning_rate") == METHODS["none"].learning_rate


def test_an_advised_change_of_the_method_reports_what_follows_and_is_undone_with_it(visitor):
    choose(visitor, "none")
    visitor.change({"adapter": {"method": "lora"}})
    visitor.refresh()

    assert value_of(visitor, "training.learning_rate") == 2e-4
    visitor.undo()
    visitor.refresh()
    assert value_of(visitor, "training.learning_rate") == METHODS["none"].learning_rate
    assert value_of(visitor, "adapter.method") == "none"


@pytest.mark.parametrize(
    "note", ["[[[", "[]", '{"training.learning_rate": [1]}', '{"model.id": "x"}', 5, "[" * 100_000]
)
def test_a_forged_note_makes_every_value_the_persons(visitor, page, note):
    visitor.values[page._defaults_note] = note
    choose(visitor, "ia3")

    assert value_of(visitor, "training.learning_rate") == 2e-4


def test_the_page_reports_what_a_default_is_suited_to(visitor, page):
    visitor.set_by_hand(adapter__method="ia3")
    notes = [value for value in visitor.values.values() if isinstance(value, str) and "suited to" in value]
    assert any("suited to LoRA" in note for note in notes)

    visitor.refresh()
    notes = [value for value in visitor.values.values() if isinstance(value, str) and "suited to" in value]
    assert any("suited to IA3" in note for note in notes)
    assert not any("suited to LoRA" in note for note in notes)


def test_the_panel_reports_how_many_rows_a_step_has(visitor, page):
    panel = render_side_panel(visitor.draft)

    assert "2 × 4 = 8 rows a step" in panel


def count_rows(visitor: FormVisitor) -> None:
    """Have the rows of the draft read, and redraw."""
    question = question_of(visitor.mapping)
    assert question is not None
    check = visitor.page.services.checks.read(question)
    wait_until(lambda: check.is_done)
    visitor.refresh()


def notes(visitor: FormVisitor) -> str:
    return " ".join(value for value in visitor.values.values() if isinstance(value, str) and "<p class=" in value)


def test_max_length_follows_the_rows_and_what_is_started_is_what_the_page_shows(visitor, page):
    visitor.fill({"model": {"id": "some/model"}, "dataset": {"source": "rows.jsonl"}})
    visitor.refresh()
    before = visitor.draft
    assert value_of(visitor, "training.max_length") == 1024
    assert notes(visitor).count("set once your rows are counted") == 2  # warm-up as well

    count_rows(visitor)

    after = visitor.draft
    assert value_of(visitor, "training.max_length") == after.config.training.max_length == 240
    assert value_of(visitor, "training.warmup_steps") == after.config.training.warmup_steps == 0.1
    assert "suited to the longest row, 240 tokens" in notes(visitor)
    assert "set once" not in notes(visitor)
    assert start_key("token", [before.config]) == start_key("token", [after.config]), (
        "a second click starts no second run"
    )
    result = page.services.checks.find(CheckQuestion.from_config(after.config))  # without reading all rows again
    assert result is not None
    assert result.report.max_length == 240

    visitor.set_by_hand(dataset__source="others.jsonl")
    visitor.refresh()
    assert value_of(visitor, "training.max_length") == 1024


def test_max_length_that_a_person_a_preset_or_a_run_gives_stays(visitor, page):
    settings = {"model": {"id": "some/model"}, "dataset": {"source": "rows.jsonl"}, "training": {"max_length": 1024}}
    visitor.fill(settings)
    count_rows(visitor)
    assert value_of(visitor, "training.max_length") == 1024
    assert value_of(visitor, "training.warmup_steps") == 0.1  # left out

    visitor.fill({**settings, "training": {}})
    visitor.refresh()
    assert value_of(visitor, "training.max_length") == 240
    visitor.set_by_hand(training__max_length=512)
    visitor.refresh()
    assert visitor.draft.config.training.max_length == 512


def test_undo_gives_back_what_was_set_and_what_followed(visitor, page):
    visitor.fill({"model": {"id": "some/model"}, "dataset": {"source": "rows.jsonl"}, "training": {"warmup_steps": 7}})
    count_rows(visitor)
    visitor.fill({"model": {"id": "some/model"}, "dataset": {"source": "others.jsonl"}})
    visitor.refresh()
    assert (value_of(visitor, "training.max_length"), value_of(visitor, "training.warmup_steps")) == (1024, 0.03)
    count_rows(visitor)
    assert (value_of(visitor, "training.max_length"), value_of(visitor, "training.warmup_steps")) == (240, 0.1)
    assert "Warm-up 7 → 0.1" in visitor.applied_notice

    visitor.undo()
    visitor.refresh()
    assert (value_of(visitor, "training.max_length"), value_of(visitor, "training.warmup_steps")) == (240, 7)
    assert visitor.draft.derived_defaults.keys() >= {"training.max_length"}
    assert "training.warmup_steps" not in visitor.draft.derived_defaults


def test_an_emptied_box_is_what_is_started(visitor, page):
    visitor.fill(a_config().model_dump(mode="json"))
    visitor.set_by_hand(training__early_stopping_patience="", training__max_length=None)
    count_rows(visitor)

    training = visitor.draft.config.training
    assert training.early_stopping_patience is None
    assert training.max_length == 1024
    assert "1,024 tokens" in render_side_panel(visitor.draft)


def test_the_hint_of_a_rate_that_was_set_follows_method_and_objective(visitor):
    visitor.set_by_hand(model__id="some/model", dataset__source="rows.jsonl", training__learning_rate=3e-4)
    hints = []
    for settings in ({}, {"adapter__method": "ia3"}, {"adapter__method": "lora", "training__objective": "dpo"}):
        visitor.set_by_hand(**settings)
        visitor.refresh()
        hints.append([html for html in map(str, visitor.values.values()) if " suits " in html])

    for hint, text in zip(hints, ("0.0002 suits LoRA", "0.005 suits IA3", "1e-05 suits dpo with LoRA"), strict=True):
        assert any(text in html for html in hint), hint
    assert "dpo, kto and orpo need a twentieth" in str(visitor.page.form["training.learning_rate"].info)
