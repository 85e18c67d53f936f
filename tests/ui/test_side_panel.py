"""The side panel measures a step of the chosen rows."""

import pytest

from loratory.engine.config.run import ModelConfig
from loratory.ui.backend.dataset_checks import question_of
from loratory.ui.side_panel import SidePanel
from tests.ui.drafts import form_values
from tests.waiting import wait_until

MODEL = "smollm2-135m-instruct"


@pytest.fixture
def panel(laid_out, services) -> SidePanel:
    services.shapes.learn(ModelConfig(id=MODEL))
    return laid_out(SidePanel)


def draft_on(panel: SidePanel):
    return panel.page.draft(form_values(panel.page.form, model__id=MODEL, dataset__source="rows.jsonl"))


def test_a_step_of_the_rows_is_measured(panel, services):
    assert panel.measurement(draft_on(panel))[panel.start]["visible"]
    check = services.checks.read(question_of(draft_on(panel).mapping))
    wait_until(lambda: check.is_done)
    draft = draft_on(panel)

    panel.begin(draft)
    wait_until(lambda: "One step, measured" in panel.measurement(draft)[panel.job.status])

    assert "a step of 8 rows of " in panel.measurement(draft)[panel.job.status]
    assert panel.measurement(draft)[panel.start]["visible"]
