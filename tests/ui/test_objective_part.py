"""The objective on the page: it follows the rows, offers what they allow, and starts from an earlier run's adapter."""

import pytest

from loratory.engine.config.objectives import OBJECTIVES
from loratory.engine.config.presets import find_preset
from loratory.ui.backend.dataset_checks import question_of
from loratory.ui.tabs.objective import ObjectivePart, _choose, _render_choice, _render_losses
from loratory.ui.tabs.start import why_not
from loratory.ui.tabs.train import TrainTab
from loratory.ui.views.draft import next_step, render_bar
from loratory.ui.views.memory import render_side_panel
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.form_visitor import FormVisitor
from tests.waiting import wait_until

PAIRS, RATINGS, ANSWERS = "sample:loratory-preferences", "ratings.jsonl", "sample:loratory-faq"


@pytest.fixture
def part(laid_out) -> ObjectivePart:
    return laid_out(TrainTab).objective


@pytest.fixture
def visitor(part) -> FormVisitor:
    return FormVisitor(part.page)


def draft_of(visitor: FormVisitor, source: str = "", **changes):
    """Return the draft of a form with a model, after the rows of its dataset were counted."""
    page = visitor.page
    settings = {"model__id": "some/model", "adapter__target_modules": ["all-linear"], **changes}
    visitor.set_by_hand(**settings, **({"dataset__source": source} if source else {}))
    page.services.shapes.learn(a_config(model__id="some/model").model)
    if source:
        question = question_of(visitor.mapping)
        assert question is not None
        check = page.services.checks.request(question)
        wait_until(lambda: check.is_done)
    visitor.refresh()
    return visitor.draft


@pytest.mark.parametrize(
    ("source", "objective", "choices"),
    [(ANSWERS, "sft", ["sft", "grpo"]), (PAIRS, "dpo", ["dpo", "orpo"]), (RATINGS, "kto", ["kto"])],
)
def test_the_objective_follows_the_rows_and_the_rest_is_not_offered(visitor, source, objective, choices):
    draft = draft_of(visitor, source)

    choice = _render_choice(draft)
    assert draft.objective.name == draft.config.training.objective == objective
    assert [name for _, name in choice["choices"]] == choices
    assert OBJECTIVES[objective].help in choice["info"]
    assert draft.problems == ()
    assert why_not(draft) is None
    assert draft.estimate is not None


def test_before_rows_are_known_every_objective_is_offered(visitor):
    assert len(_render_choice(draft_of(visitor))["choices"]) == len(OBJECTIVES)


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize(("source", "objective"), [(ANSWERS, "dpo"), (PAIRS, "sft"), (PAIRS, "kto"), (RATINGS, "orpo")])
def test_an_objective_that_does_not_fit_the_rows_is_named_with_those_that_do(visitor, source, objective):
    draft_of(visitor, source)
    visitor.set_by_hand(training__objective=objective)
    visitor.refresh()
    draft = visitor.draft

    (problem,) = draft.problems
    assert problem.field == "training.objective"
    assert "does not fit the rows" in problem.message
    assert f"training.objective {objective} trains on" in problem.message
    assert draft.estimate is not None, "memory is judged for the longest rows instead"
    # It can be seen and left, although the rows do not allow it.
    assert objective in [name for _, name in _render_choice(draft)["choices"]]


def test_settings_are_in_sight_for_the_objectives_that_read_them(visitor):
    html = {name: set(_render_losses(draft_of(visitor, training__objective=name))["choices"]) for name in OBJECTIVES}

    assert html == {name: set(objective.losses) for name, objective in OBJECTIVES.items()}


def test_another_objective_keeps_the_losses_that_it_has():
    assert _choose("kto", ["sigmoid", "sft"], "1, 0.2") == ("kto", [], "")
    assert _choose("dpo", ["sigmoid", "sft"], "1, 0.2") == ("dpo", ["sigmoid", "sft"], "1, 0.2")


def test_weights_of_losses_are_read_as_numbers_and_a_wrong_one_is_named(visitor):
    draft = draft_of(visitor, PAIRS, training__loss_type=["sigmoid", "sft"], training__loss_weights="1, 0.2")
    assert draft.config.training.loss_weights == (1.0, 0.2)

    for wrong in ("1, x", "1", "1, -2"):
        draft = draft_of(visitor, PAIRS, training__loss_weights=wrong)
        assert [problem.field for problem in draft.problems] == ["training.loss_weights"]


def test_panel_and_bar_name_how_preferences_are_learned(visitor):
    draft = draft_of(visitor, PAIRS, training__beta=0.3)

    assert "<dt>Objective</dt><dd>DPO, sigmoid, beta 0.3</dd>" in render_side_panel(draft)
    assert "pairs at once" in render_side_panel(draft)
    assert "LoRA, DPO" in render_bar(draft, next_step(draft, None, can_start=True))
    assert "Objective" not in render_side_panel(draft_of(visitor, ANSWERS))


# The adapter to start from


def a_result(services, **changes):
    return write_run(services.runs, a_config(model__id="some/model", **changes), InventedRun())


def test_a_run_on_the_same_model_can_be_the_start_and_brings_its_shape(visitor, part, services):
    run = a_result(services, adapter__r=8, adapter__lora_alpha=8)
    write_run(services.runs, a_config(model__id="other/model"), InventedRun())
    offers = part.render_start(draft_of(visitor, PAIRS))
    assert [value for _, value in offers["choices"]] == ["", run.id]

    visitor.change(part.start_from(run.id))
    visitor.refresh()

    adapter = visitor.mapping["adapter"]
    assert (adapter["warm_start"], adapter["r"], adapter["lora_alpha"]) == (run.id, 8, 8)
    visitor.change(part.start_from(""))
    visitor.refresh()
    assert "warm_start" not in visitor.mapping["adapter"]
    visitor.undo()
    visitor.undo()


def test_a_start_that_was_deleted_stays_in_sight(visitor, part):
    draft = draft_of(visitor, PAIRS)
    deleted_id = "20260101-000000-abcd"
    draft.mapping["adapter"]["warm_start"] = deleted_id

    offers = part.render_start(draft)

    assert offers["value"] == deleted_id
    assert deleted_id in [value for _, value in offers["choices"]]


def test_a_preset_that_continues_another_one_takes_its_result_once_it_exists(visitor, part, services):
    preset = find_preset("quickstart-dpo-cpu")
    before = find_preset(preset.starts_from)
    visitor.fill(part.with_start(preset))
    assert "has not been trained here yet" in visitor.applied_notice

    run = write_run(services.runs, before.load(), InventedRun())
    visitor.page.reader.invalidate()
    visitor.fill(part.with_start(preset))
    assert visitor.mapping["adapter"]["warm_start"] == run.id
    assert "not been trained" not in visitor.applied_notice
