"""The side panel measures a step of the chosen rows."""

import re

import pytest

from loratory.engine.config.load import change_of
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


def test_memory_by_length_and_batch_has_the_drafts_own_and_can_be_picked(panel):
    grid = panel.page.later_views[panel.advice](draft_on(panel)).partition('id="memory-grid"')[2]
    cells = dict(re.findall(r'data-pick="([^"]+)"[^>]*>([0-9.]+)<', grid))

    assert len(cells) == 20
    assert 'class="yes now" data-pick="training.max_length=1024 training.per_device_train_batch_size=2"' in grid
    change = change_of("training.max_length=2048 training.per_device_train_batch_size=4".split())
    assert change == {"training": {"max_length": 2048, "per_device_train_batch_size": 4}}
    by_length = [
        float(cells[f"training.max_length={length} training.per_device_train_batch_size=8"])
        for length in (512, 1024, 8192)
    ]
    assert by_length == sorted(set(by_length))
