"""Reading the form: what is missing, what is wrong, and what it would need, without ever raising."""

import pytest

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import MemoryUnknownError, ModelError
from loratory.engine.memory.estimate import estimate_memory
from loratory.ui.backend.background import UNEXPECTED
from loratory.ui.backend.dataset_checks import DatasetChecks, question_of
from loratory.ui.backend.models import KnownShapes
from loratory.ui.tabs.method import render_method_table, render_trainable
from loratory.ui.tabs.start import why_not
from loratory.ui.views.draft import next_step, render_bar
from loratory.ui.views.memory import render_side_panel
from tests.fake_inspector import FakeInspector
from tests.ui.drafts import NAMES, draft_of, small_shape
from tests.ui.drafts import form as form
from tests.waiting import wait_until


def test_an_empty_form_reports_what_to_choose_and_reports_no_mistake(form):
    draft = draft_of(form, None)

    assert draft.missing == ("Choose a model.", "Choose a dataset.")
    assert draft.problems == ()
    assert "Choose a model to see its memory." in render_side_panel(draft)


def test_memory_is_estimated_before_a_dataset_is_chosen(form):
    draft = draft_of(form, small_shape(), model__id="m", adapter__target_modules=list(NAMES))

    assert draft.config is None
    assert draft.missing == ("Choose a dataset.",)
    assert draft.estimate is not None
    assert "expected" in render_side_panel(draft)


def test_memory_is_that_of_the_chosen_rows_once_their_lengths_are_known(form):
    checks = DatasetChecks(FakeInspector())
    settings = {"model__id": "m", "dataset__source": "rows.jsonl", "adapter__target_modules": list(NAMES)}
    before = draft_of(form, small_shape(), checks=checks, **settings)
    check = checks.read(question_of(before.mapping))
    wait_until(lambda: check.is_done)

    draft = draft_of(form, small_shape(), checks=checks, **settings)
    longer = draft_of(form, small_shape(), checks=checks, training__max_length=4096, **settings)

    assert before.ceiling is None
    assert "For rows of 1,024 tokens; for your rows once all are read." in render_side_panel(before)
    assert draft.ceiling.expected_bytes == before.estimate.expected_bytes
    assert draft.estimate.expected_bytes < before.estimate.expected_bytes
    assert "For your rows, the longest of 240 tokens: 8 rows at once" in render_side_panel(draft)
    assert "If all rows had 1,024 tokens: " in render_side_panel(draft)
    assert "At 1,024 tokens, batch 2" in render_method_table(before)
    assert "For your rows, at most 1,024 tokens, batch 2" in render_method_table(draft)
    assert longer.estimate.pass_tokens == draft.estimate.pass_tokens, "their lengths are known whatever max_length is"
    assert draft_of(form, small_shape(), checks=checks, **{**settings, "model__id": "other"}).rows is None


def test_cut_rows_and_an_unusual_rate_are_alarms_next_to_the_verdict(form):
    checks = DatasetChecks(FakeInspector())
    settings = {"model__id": "m", "dataset__source": "rows.jsonl", "adapter__target_modules": list(NAMES)}
    check = checks.read(question_of(draft_of(form, small_shape(), checks=checks, **settings).mapping))
    wait_until(lambda: check.is_done)
    rows = check.report.row_lengths

    usual = render_side_panel(draft_of(form, small_shape(), checks=checks, training__max_length=240, **settings))
    cut = render_side_panel(draft_of(form, small_shape(), checks=checks, training__max_length=16, **settings))
    rate = render_side_panel(draft_of(form, small_shape(), training__learning_rate=1.0, **settings))

    assert 'class="alarm"' not in usual
    assert (
        f"{rows.cut_rows(16)} of {rows.count} training rows are cut at 16 tokens; the longest has {rows.longest}."
        in cut
    )
    assert 'data-pick="training.max_length=240">Raise Max length to 240</button>' in cut
    assert "The learning rate 1 is 5,000 times the usual 0.0002 of LoRA." in rate
    assert cut.index('class="verdict"') < cut.index('class="alarm"') < cut.index("For your rows")
    assert "<dt>Learning rate</dt><dd>1</dd>" in rate


def test_a_model_that_is_looked_up_is_not_said_to_be_missing(form):
    draft = draft_of(form, None, model__id="m")

    for html in (render_side_panel(draft), render_trainable(draft), render_method_table(draft)):
        assert "Choose a model" not in html
        assert "looked up" in html
    assert "Choose a model" in render_trainable(draft_of(form, None))


def test_every_module_ticked_means_all_linear(form):
    draft = draft_of(
        form, small_shape(), model__id="m", dataset__source="d", adapter__target_modules=list(reversed(NAMES))
    )

    assert draft.config is not None
    assert draft.config.adapter.target_modules == "all-linear"


def test_no_module_ticked_is_a_mistake_that_names_itself(form):
    draft = draft_of(form, small_shape(), model__id="m", dataset__source="d", adapter__target_modules=[])

    assert draft.config is None
    assert [problem.field for problem in draft.problems] == ["adapter.target_modules"]
    assert "tick at least one" in render_side_panel(draft)


def test_all_mistakes_stand_in_the_panel_together(form):
    draft = draft_of(
        form,
        small_shape(),
        model__id="m",
        dataset__source="d",
        adapter__target_modules=["q_proj"],
        adapter__method="prefix_tuning",
        training__gradient_checkpointing=True,
        training__learning_rate=-1,
    )

    panel = render_side_panel(draft)

    assert {problem.field for problem in draft.problems} == {
        "training.learning_rate",
        "training.gradient_checkpointing",
    }
    assert 'data-field="training.learning_rate">Learning rate</button>: <span>' in panel
    assert "learning_rate</" not in panel
    assert "Correct the settings above first." in panel


def test_what_the_device_cannot_run_stands_in_the_panel_next_to_its_memory(form):
    settings = {"model__id": "m", "dataset__source": "d", "run__devices": "cpu", "training__optim": "paged_adamw_8bit"}
    draft = draft_of(form, small_shape(), **settings, adapter__target_modules=list(NAMES))
    panel = render_side_panel(draft)

    assert draft.config is not None  # it may be saved for another machine
    assert "To correct" in panel
    assert "adamw_torch is the nearest" in panel
    assert "expected" in panel
    assert why_not(draft) == "One setting needs your attention."
    assert why_not(draft_of(form, small_shape(), **settings | {"training__optim": "adamw_torch"})) is None


@pytest.mark.parametrize("wrong", [{"jobs__limit_hours": "-3"}, {"training__learning_rate": "much"}])
def test_the_choice_of_the_place_stays_while_something_is_wrong(form, wrong):
    draft = draft_of(form, None, model__id="m", run__where="jobs", **wrong)

    assert draft.problems
    assert draft.is_elsewhere
    assert not draft_of(form, None, model__id="m", **wrong).is_elsewhere


def test_another_device_is_judged_and_this_machine_still_decides_on_the_start(form):
    settings = {"model__id": "m", "dataset__source": "d", "run__devices": "cpu", "adapter__target_modules": list(NAMES)}
    here, there = (draft_of(form, small_shape(), **settings, page__judge_for=name) for name in ("", "RTX 4090"))
    panel, table = render_side_panel(there), render_method_table(there)

    assert there.device_memory.device.name == "NVIDIA RTX 4090"
    assert there.device_memory.estimate.free_bytes == there.device_memory.device.total_bytes
    assert (
        there.estimate.components == here.estimate.components == here.device_memory.estimate.components
    )  # free memory moves
    assert (there.config, there.mapping, there.problems) == (here.config, here.mapping, here.problems)
    assert "Estimate for NVIDIA RTX 4090. A run still starts on this machine." in panel
    assert "Memory on NVIDIA RTX 4090" in panel
    assert "GiB free on NVIDIA RTX 4090" in table
    assert "Estimate for" not in render_side_panel(here)


@pytest.mark.parametrize(("device", "is_refused"), [("RTX 4090", False), ("Apple M-series 16 GB", True)])
def test_what_another_device_cannot_run_is_reported_next_to_its_memory(form, device, is_refused):
    settings = {"model__id": "m", "dataset__source": "d", "run__devices": "cpu", "training__optim": "paged_adamw_8bit"}
    draft = draft_of(form, small_shape(), **settings, adapter__target_modules=list(NAMES), page__judge_for=device)

    assert why_not(draft) is not None, "this machine decides on the start"
    assert ("It cannot run this draft: paged_adamw_8bit" in render_side_panel(draft)) == is_refused


def test_a_model_too_big_for_this_machine_cannot_start_whatever_is_judged(form, monkeypatch):
    settings = {"model__id": "m", "dataset__source": "d", "run__devices": "cpu", "adapter__target_modules": list(NAMES)}
    real = estimate_memory

    def too_big_on(kind):
        def estimate(shape, config, device, rows=None):
            result = real(shape, config, device, rows)
            return result.model_copy(update={"expected_bytes": 10**15}) if device.kind == kind else result

        return estimate

    monkeypatch.setattr("loratory.ui.draft.estimate_memory", too_big_on("cuda"))
    assert why_not(draft_of(form, small_shape(), **settings, page__judge_for="T4")) is None
    monkeypatch.setattr("loratory.ui.draft.estimate_memory", too_big_on("cpu"))
    assert "It needs about" in why_not(draft_of(form, small_shape(), **settings, page__judge_for="B200"))


@pytest.mark.parametrize("name", [None, 7, ["RTX 4090"], {"a": 1}, "RTX 9999", "<script>", "../../etc/passwd"])
def test_a_device_that_is_not_in_the_table_means_this_machine(form, name):
    draft = draft_of(form, small_shape(), model__id="m", adapter__target_modules=list(NAMES), page__judge_for=name)

    assert draft.memory_elsewhere is None
    assert draft.device_memory.device == draft.device


def test_what_a_person_typed_cannot_become_markup(form):
    draft = draft_of(form, None, model__id="<img src=x onerror=alert(1)>", dataset__source="</dd><script>")

    panel = render_side_panel(draft)

    assert "<img" not in panel
    assert "<script" not in panel


@pytest.mark.parametrize(
    ("error", "text"),
    [(MemoryUnknownError("It has a layer of size 0.", "Train it."), "It has a layer of size 0."),
     (AssertionError("a mistake of ours"), UNEXPECTED.what)],
    ids=["unknown to the estimate", "a mistake of the estimate"],
)  # fmt: skip
def test_a_run_whose_memory_cannot_be_estimated_can_start(form, monkeypatch, error, text):
    def fail(*_):
        raise error

    monkeypatch.setattr("loratory.ui.draft.estimate_memory", fail)
    draft = draft_of(form, small_shape(), model__id="m", dataset__source="d", adapter__target_modules=list(NAMES))

    assert draft.estimate_error is not None
    assert draft.estimate_error.what == text
    assert "a mistake of ours" not in render_side_panel(draft)
    assert why_not(draft) is None


def test_a_model_that_cannot_be_read_is_not_ready_until_it_was_read(services):
    inspector, model = services.inspector, ModelConfig(id="somebody/gone")
    shapes = KnownShapes(inspector)
    read, inspector.module_inventory = inspector.module_inventory, _not_found

    with pytest.raises(ModelError):
        shapes.learn(model)
    assert shapes.trouble(model.id, None) is not None
    inspector.module_inventory = read
    shapes.learn(model)
    assert shapes.trouble(model.id, None) is None


def _not_found(_model):
    raise ModelError("There is no such model.", "Check its name.")


def test_a_failed_model_is_a_problem_of_the_draft(form):
    draft = draft_of(form, None, model_error=ModelError("Gone.", "Check."), model__id="m", dataset__source="d")

    assert ("model.id", "Gone. Check.") in draft.problems
    assert why_not(draft) == "One setting needs your attention."


def test_what_failed_is_not_shown_as_chosen(form):
    settings = {"model__id": "m", "dataset__source": "gone.jsonl", "adapter__target_modules": list(NAMES)}
    checks = DatasetChecks(FakeInspector())
    failure = ModelError("It cannot be downloaded.", "Check.")
    checks.note_refused(question_of(draft_of(form, small_shape(), **settings).mapping), failure)
    of_data = draft_of(form, small_shape(), checks=checks, **settings)
    of_model = draft_of(form, small_shape(), checks=checks, tokenizer_error=failure, **settings)

    assert [field for field, _ in of_data.problems] == ["dataset.source"]
    assert [field for field, _ in of_model.problems] == ["model.id"], "the rows are not read without it"
    for draft, name, kind in ((of_data, "gone.jsonl", "Data"), (of_model, "m", "Model")):
        assert f"{name} (cannot be used)" in render_side_panel(draft)
        step = next_step(draft, None, can_start=False)
        assert f"<span>{kind}, cannot be used</span> {name}" in render_bar(draft, step)
        assert render_side_panel(draft).count("(cannot be used)") == 1
    alone = draft_of(form, small_shape(), tokenizer_error=failure, **{**settings, "dataset__source": ""})
    assert alone.is_unusable("model.id")
    assert alone.estimate is not None, "memory needs no tokenizer"
