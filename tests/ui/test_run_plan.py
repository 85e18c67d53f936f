"""What a draft will come to: steps and tokens as the trainer counts them, time only where it is known."""

import pytest

from loratory.engine.runs.prediction import plan_run
from loratory.engine.runs.summary import RunSummary
from loratory.ui.views.draft import outlook, render_plan
from tests.fake_inspector import a_report
from tests.invented_runs import a_config


def report(**changes: object):
    config = a_config()
    return a_report(config.dataset, config.model, 512).model_copy(update=changes)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        # 312 training rows in batches of 2, four of them a step: 39 steps an epoch.
        ({"training__max_steps": -1, "training__num_train_epochs": 3}, 117),
        ({"training__max_steps": -1, "training__num_train_epochs": 0.5}, 20),
        ({"training__max_steps": 20, "training__num_train_epochs": 3}, 20),
        # The last batches fill no whole step, and still make one.
        ({"training__max_steps": -1, "training__num_train_epochs": 1, "training__gradient_accumulation_steps": 100}, 2),
    ],
)
def test_steps_follow_from_rows_batches_and_epochs(settings, steps):
    plan = plan_run(a_config(**settings).training, report())

    assert plan is not None
    assert plan.steps == steps


def test_packing_makes_fewer_rows_and_reports_that_they_are_estimated():
    training = a_config(training__max_steps=-1, training__num_train_epochs=1, training__packing=True).training

    plan = plan_run(training, report())

    assert plan is not None
    assert plan.is_estimate
    assert plan.steps == 6  # 21,039 tokens in rows of 512, eight rows a step


def test_tokens_follow_the_steps_that_are_really_made():
    short = plan_run(a_config(training__max_steps=39).training, report())
    long = plan_run(a_config(training__max_steps=78).training, report())

    assert short is not None
    assert long is not None
    assert long.trained_tokens == pytest.approx(2 * short.trained_tokens, abs=1)
    assert short.trained_tokens == pytest.approx(14_800 * 312 / 347, abs=1)


def test_without_a_count_nothing_is_made_up():
    html = render_plan(a_config(training__max_steps=-1), None, None)

    assert "<b>?</b>steps" in html
    assert "unknown until the rows are counted" in html
    assert plan_run(a_config().training, report(total_tokens=None)) is None


def test_time_is_unknown_until_a_like_run_was_measured():
    config = a_config(training__max_steps=39)

    assert "unknown until the first steps" in render_plan(config, report(), None)
    similar = RunSummary(id="run", owner="", name="faq <1>", state="completed", tokens_per_second=100.0)
    whole = render_plan(config, report(), similar, 31)
    assert "in all" in whole
    assert "with 31 s for loading, evaluation and saving" in whole
    assert outlook(config, report(), None, None) == ["39 steps"]
    steps, duration = outlook(config, report(), similar, 31)
    assert (steps, duration) == ("39 steps", "≈ 4 min 01 s")
    assert f"<b>{duration}</b>" in whole
    assert outlook(config, None, similar, 31) == []
    html = render_plan(config, report(), similar)
    assert "≈ 3 min 30 s" in html  # 21,039 tokens at 100 a second
    assert "faq &lt;1&gt;" in html


def test_rows_that_are_cut_are_mentioned():
    lengths = report().token_lengths.model_copy(update={"over_max_length": 3})

    assert "3 rows are truncated at 512 tokens" in render_plan(a_config(), report(token_lengths=lengths), None)


def test_a_plan_reports_why_no_row_is_held_out():
    note = "No held-out rows: all 30 rows share one prompt."

    html = render_plan(a_config(), report(held_out_rows=0, why_none_held_out=note), None)

    assert f'<p class="notice">{note}</p>' in html


def test_a_plan_has_what_judges_are_asked_and_what_that_costs():
    judge = {"scorer": "judge", "endpoint": "http://x/v1", "model": "m", "rubric": "?"}
    settings = {
        "training__objective": "grpo", "training__max_steps": 50, "training__num_generations": 8,
        "training__per_device_train_batch_size": 4, "training__gradient_accumulation_steps": 1,
    }  # fmt: skip
    with_price = {**judge, "prompt_price": 0.0, "answer_price": 1.0, "answer_tokens": 100}

    assert "In 50 steps, 1,600 calls of judges" in render_plan(
        a_config(**settings, training__rewards=[judge]), None, None
    )
    assert "price unknown" in render_plan(a_config(**settings, training__rewards=[judge]), report(), None)
    assert "0.16 at these prices" in render_plan(a_config(**settings, training__rewards=[with_price]), report(), None)
    assert "judges" not in render_plan(a_config(**settings, training__rewards=[{"scorer": "number"}]), report(), None)
