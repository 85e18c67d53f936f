"""The side panel measures a step of the chosen rows, and one of the longest rows allowed as a second choice."""

import pytest

from engine.config.run import ModelConfig
from tests.ui.data_tab_visitor import wait_for
from ui.backend.dataset_checks import question_of
from ui.side_panel import SidePanel, measured_configs

CHOSEN = {"model.id": "smollm2-135m-instruct", "dataset.source": "rows.jsonl"}


@pytest.fixture
def panel(laid_out, services) -> SidePanel:
    services.shapes.learn(ModelConfig(id=CHOSEN["model.id"]))
    return laid_out(SidePanel)


def draft_on(panel: SidePanel):
    form = panel.page.form
    values = dict(zip(form.names, form.updates({}), strict=True)) | CHOSEN
    return panel.page.draft([values[name] for name in form.names])


def test_a_step_of_the_rows_is_measured_and_one_of_the_longest_next_to_it(panel, services):
    before = panel.measurement(draft_on(panel))
    check = services.checks.read(question_of(draft_on(panel).mapping))
    wait_for(lambda: check.is_done)
    draft = draft_on(panel)
    offers = panel.measurement(draft)

    of_rows_alone, longest = measured_configs(draft)
    panel.begin(draft, [of_rows_alone])
    wait_for(lambda: "One step, measured" in panel.measurement(draft)[panel.job.status])
    of_rows = panel.measurement(draft)[panel.job.status]
    panel.begin(draft, [longest])
    wait_for(lambda: panel.measurement(draft)[panel.job.status].count("One step, measured") == 2)

    assert not before[panel.longest]["visible"]
    assert before[panel.start]["visible"]
    assert offers[panel.longest] == {"value": "Measure 1,024-token rows", "visible": True, "__type__": "update"}
    assert "a step of 8 rows of " in of_rows
    assert "a step of 2 rows of 1,024 tokens" in panel.measurement(draft)[panel.job.status]
