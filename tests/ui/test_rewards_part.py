"""Rewards as cards, and a try of them, on a page whose model is invented."""

import gradio as gr
import pytest

from loratory.engine.data.workshop.sets import find_set
from loratory.engine.errors import ConfigError
from loratory.engine.evaluation.samples import AnswerSample, PromptSamples
from loratory.engine.evaluation.try_reward import TryRewardConfig
from loratory.engine.scoring.base import Verdict
from loratory.engine.scoring.registry import SCORERS
from loratory.ui.tabs.rewards import picked_rewards
from loratory.ui.tabs.train import TrainTab
from loratory.ui.views.memory import render_side_panel
from loratory.ui.views.rewards import render_actions, render_rewards, render_tried, render_try
from tests.any_scorer import scorer_from
from tests.data.checks import write_rows
from tests.data.workshop.made_sets import apply, read
from tests.fake_try import FakeTry
from tests.invented_runs import a_config
from tests.ui.form_visitor import FormVisitor
from tests.waiting import PATIENCE_SECONDS

GRPO = {"training__objective": "grpo", "training__rewards": [{"scorer": "number"}]}


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_has_a_card_with_a_control_for_each_setting(name):
    kind = SCORERS[name]
    html = render_rewards([{"scorer": name}])

    assert f'data-scorer="{name}"' in html
    assert kind.sentence.split("`")[0].replace("'", "&#x27;")[:20] in html
    for field in kind.model_fields:
        assert (f'data-field="{field}"' in html) == (field != "scorer")


def test_values_of_a_draft_are_in_the_controls_and_strangers_are_left_out():
    rewards = [{"scorer": "number", "weight": 2.5, "column": '"><script>'}, {"scorer": "<b>"}, "number", 7]
    html = render_rewards(rewards)

    assert html.count("<fieldset") == 1
    assert 'value="2.5"' in html
    assert "<script>" not in html
    assert "<b>" not in html


def test_a_try_has_its_verdict_figures_bad_answers_and_answers(tmp_path):
    config = a_config(**GRPO)
    attempt = FakeTry(None, config, TryRewardConfig())
    html = render_try(attempt.run(), config, 60)

    assert "Can learn" in html
    assert "The answers of 2 of 4 prompts differ in their reward." in html
    assert "for 60 steps, about" in html
    assert "The empty answer" in html
    assert html.count("<details") == 4
    assert "no difference" in html


def test_a_try_has_what_its_judges_will_be_asked_in_the_run():
    judge = {"scorer": "judge", "endpoint": "http://x/v1", "model": "m", "rubric": "?"}
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 8}
    more = {f"training__{name}": value for name, value in batch.items()}
    config = a_config(training__objective="grpo", training__rewards=[judge], **more)
    result = FakeTry(None, config, TryRewardConfig()).run()

    assert "1,920 calls of judges: at most" in render_try(result, config, 60)
    assert "in 60 steps" in render_try(result, config, 60)
    assert "32 calls of judges" in render_try(result, config, None)


def test_texts_of_models_and_reasons_are_escaped():
    scorers = [scorer_from({"scorer": "number"})]
    verdicts = (Verdict(None, 'No "number" <i>'),)
    answer = AnswerSample.from_verdicts("<img src=x>", 3, verdicts, scorers, is_cut=True)
    html = render_tried([PromptSamples(row=0, prompt="<p>", reference="<q>", answers=(answer,))], ["Number"])

    assert "<img" not in html
    assert "<q>" not in html
    assert "&quot;number&quot;" in html
    assert "cut" in html


@pytest.fixture
def visitor(laid_out):
    return FormVisitor(laid_out(TrainTab).page)


def test_the_cards_of_a_draft_are_shown_and_a_try_of_it_runs_to_its_end(laid_out):
    tab = laid_out(TrainTab)
    part, visitor = tab.objective.rewards, FormVisitor(tab.page)
    assert not part.state(visitor.draft)[part.actions]["visible"]

    visitor.fill(a_config(**GRPO).model_dump(mode="json"))
    draft = visitor.draft
    assert draft.objective.samples_answers
    assert draft.config.training.rewards == (scorer_from({"scorer": "number"}),)
    assert 'data-pick="stop"' in part.act(draft, "try")[part.actions]["value"]
    work = tab.page.services.tries.find(part.key(draft.config))
    assert work.done.wait(PATIENCE_SECONDS)

    assert "Can learn" in part.state(draft)[part.job.status]
    visitor.change({"training": {"temperature": 0.5}})
    assert "Can learn" not in part.state(visitor.draft)[part.job.status], "other answers would be sampled"


def test_a_try_can_be_stopped_and_keeps_what_was_answered(laid_out, services):
    tab = laid_out(TrainTab)
    part, visitor = tab.objective.rewards, FormVisitor(tab.page)
    visitor.fill(a_config(**GRPO).model_dump(mode="json"))
    attempt = FakeTry(services.home, visitor.draft.config, TryRewardConfig(), pace=60.0)
    work = services.tries.start(part.key(visitor.draft.config), "A try", attempt)

    part.act(visitor.draft, "stop")

    assert work.done.wait(PATIENCE_SECONDS)
    assert "Stopped." in part.state(visitor.draft)[part.job.status]


@pytest.fixture
def tried(laid_out, services, tmp_path):
    """Return the part, a visitor whose draft has a file of six prompts, and a function that tries all of them."""
    tab = laid_out(TrainTab)
    part, visitor = tab.objective.rewards, FormVisitor(tab.page)
    file = write_rows(tmp_path / "sums.jsonl", [{"prompt": f"What is {n} + 0?", "answer": str(n)} for n in range(6)])
    visitor.fill(a_config(**GRPO, dataset__source=str(file)).model_dump(mode="json"))

    def try_all():
        part.act(visitor.draft, "all")
        assert services.tries.find(part.key(visitor.draft.config)).done.wait(PATIENCE_SECONDS)
        return part.state(visitor.draft)[part.actions]["value"]

    return part, visitor, try_all


def test_prompts_that_were_sometimes_right_are_kept_in_a_set_of_the_file(tried, services):
    part, visitor, try_all = tried
    assert "Keep the 2 prompts that were sometimes right" in try_all()

    visitor.change(part.keep(visitor.draft))

    assert visitor.draft.config.dataset.source == "set:sums"
    assert list(read(services.home, "set:sums")) == [2, 4, 5, 6], "and 5 and 6, which are held out"
    assert [entry.operation.kind for entry in find_set(services.home, "sums").entries] == ["drop", "split"]
    assert "Keep the" not in part.state(visitor.draft)[part.actions]["value"], "these rows were not tried"


def test_prompts_of_a_set_are_kept_in_it_and_come_back_when_that_is_undone(tried, services):
    part, visitor, try_all = tried
    try_all()
    visitor.change(part.keep(visitor.draft))
    apply(services.home, {"kind": "undo", "id": 1}, {"kind": "undo", "id": 2}, name="sums")
    assert "Keep the 2" in try_all()

    assert part.keep(visitor.draft) == {"dataset": {"source": "set:sums"}}

    assert list(read(services.home, "set:sums")) == [2, 4, 5, 6]


def test_a_set_that_changed_since_the_try_is_tried_again_first(tried, services):
    part, visitor, try_all = tried
    try_all()
    visitor.change(part.keep(visitor.draft))
    with pytest.raises(ConfigError, match="try them again"):
        part.keep(visitor.draft)


def test_some_prompts_can_be_followed_by_all_with_the_time_that_takes():
    attempt = FakeTry(None, a_config(**GRPO), TryRewardConfig())
    assert "Try all 6 prompts, about 4 s" in render_actions(attempt.run(), right=0, is_under_way=False)


def test_changed_rewards_are_named_by_their_scorers(visitor):
    visitor.fill(a_config(**GRPO).model_dump(mode="json"))
    visitor.change({"training": {"rewards": [{"scorer": "number"}, {"scorer": "length"}]}})
    assert "number → number, length" in visitor.applied_notice


def test_a_beta_of_zero_is_named_in_the_panel(visitor):
    visitor.fill(a_config(**GRPO, training__beta=0).model_dump(mode="json"))
    assert "GRPO, dapo, beta 0<" in render_side_panel(visitor.draft, "")


def test_what_a_client_sends_as_rewards_is_a_draft_or_a_message():
    def send(text):
        return picked_rewards(gr.EventData(None, {"pick": text}))

    assert send('[{"scorer": "regex"}, 3]') == {"training": {"rewards": [{"scorer": "regex"}]}}, "a pattern is missing"
    for text in ("", "{}", "[", '"x"'):
        with pytest.raises(ConfigError, match="not scorers"):
            send(text)


def test_a_scorer_without_its_required_setting_is_a_problem_of_the_draft(visitor):
    visitor.fill(a_config(**GRPO).model_dump(mode="json"))
    visitor.change({"training": {"rewards": [{"scorer": "regex"}]}})
    (problem,) = visitor.draft.problems
    assert problem.field == "training.rewards"
    assert "pattern" in problem.message.lower(), "and not the message about missing rewards"
    assert visitor.draft.config is None
