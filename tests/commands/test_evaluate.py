"""`loratory evaluate`, with a job that measures nothing."""

import json

import pytest

from loratory.engine.cli import run_command
from loratory.engine.evaluation.job import (
    AnsweredRow,
    AnswerScores,
    BranchAnswer,
    BranchLoss,
    EvaluationResult,
    MeanScores,
)
from tests.commands.conftest import FakeJob
from tests.fake_results import a_preference_evaluation, a_rated_evaluation, losses_by_row

MODULES = ("loratory.engine.commands.evaluate", "loratory.engine.commands.configs")

SCORES = AnswerScores(exact=False, rouge_l=0.25, chrf=0.5)
RESULT = EvaluationResult(
    losses={"base": BranchLoss.from_loss(2.0, 100), "tuned": BranchLoss.from_loss(1.0, 100)},
    rows=8,
    scores={branch: MeanScores(exact=0.0, rouge_l=0.25, chrf=0.5, rows=1) for branch in ("base", "tuned")},
    answered_rows=(
        AnsweredRow(
            row=3,
            prompt="Q",
            reference="R" * 100,
            answers={"tuned": BranchAnswer(text="an answer", tokens=2, scores=SCORES)},
        ),
    ),
    notes=("The data has changed.",),
    general_losses={"base": BranchLoss.from_loss(3.0, 900), "tuned": BranchLoss.from_loss(3.12, 900)},
)


@pytest.fixture(autouse=True)
def job(monkeypatch, home):
    job = FakeJob(lambda _: RESULT)
    monkeypatch.setattr("loratory.engine.commands.evaluate.EvaluationJob", job)
    return job


def test_losses_of_both_branches_are_keys_of_the_json(job, run_id, capsys):
    options = ["--checkpoint", "step-4", "--rows", "5", "--answers", "2", "--max-tokens", "9", "--no-forgetting"]

    code = run_command(["evaluate", run_id, *options, "--json"], MODULES)

    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer["base"] == {"loss": 2.0, "perplexity": pytest.approx(7.389056), "tokens": 100}
    assert answer["tuned"]["loss"] == 1.0
    assert answer["rows"] == 8
    assert answer["general_losses"]["tuned"]["loss"] == 3.12
    assert (answer["gained"], answer["forgot"]) == (0.5, pytest.approx(0.04))
    (request,) = job.requests
    assert (request.settings.max_rows, request.settings.answered_rows, request.settings.max_new_tokens) == (5, 2, 9)
    assert not request.settings.general_text
    assert request.target.tuned.checkpoint == "step-4"


def test_people_read_a_table_the_notes_and_the_worst_answers(run_id, capsys):
    assert run_command(["evaluate", run_id], MODULES) == 0

    output = capsys.readouterr().out
    assert "tuned  1.0000        2.72" in output
    assert "gained 50%, forgot 4%: loss on general text 3.0000 before, 3.1200 after (900 tokens)." in output
    assert "The data has changed." in output
    assert "row 4: " + "R" * 59 + "…" in output
    assert "tuned (chrF 0.50): an answer" in output


def test_preferences_are_columns_and_sentences(job, run_id, capsys):
    job.result = lambda _: a_preference_evaluation().model_copy(update={"scores": {}})

    assert run_command(["evaluate", run_id], MODULES) == 0
    output = capsys.readouterr().out
    assert "Chosen likelier" in output
    assert any(line.startswith("start") and "53%" in line for line in output.splitlines())
    assert "Preference accuracy 93%: since its start" in output
    assert run_command(["evaluate", run_id, "--json"], MODULES) == 0
    assert json.loads(capsys.readouterr().out)["preference"]["branches"]["tuned"]["preferred"] == 28


def test_ratings_are_columns_and_sentences(job, run_id, capsys):
    job.result = lambda _: a_rated_evaluation().model_copy(update={"scores": {}})

    assert run_command(["evaluate", run_id], MODULES) == 0
    output = capsys.readouterr().out
    lines = {line.split()[0]: line for line in reversed(output.splitlines()) if line}
    assert "Reward, desirable" in output
    assert lines["tuned"].split()[-4:] == ["83%", "+0.850", "-0.670", "+1.520"]
    assert lines["base"].split()[-4:] == ["–"] * 4  # it is the reference
    assert "Accuracy 83%: the reward has the sign of the label in 25 of 30" in output
    assert run_command(["evaluate", run_id, "--json"], MODULES) == 0
    assert json.loads(capsys.readouterr().out)["ratings"]["branches"]["tuned"]["right_desirable"] == 18


def test_losses_of_rows_are_four_lists(job, run_id, capsys):
    job.result = lambda _: losses_by_row("set:faq@0123")
    modules = ("loratory.engine.commands.data", *MODULES)

    assert run_command(["data", "losses", "set:faq", "--run", run_id, "--rows", "4"], modules) == 0

    output = capsys.readouterr().out
    assert output.startswith("set:faq@0123: 4 rows.\n\nLikeliest:\n    2.0000 →   1.0000  row 4: It <i>é\n")
    assert "\nGot worse:\n    2.0000 →   4.0000  row 12: It <i>é\n" in output
    (request,) = job.requests
    assert (request.settings.source, request.settings.max_rows, request.settings.answered_rows) == ("set:faq", 4, 0)
    assert not request.settings.general_text

    assert run_command(["data", "losses", "set:faq", "--run", run_id, "--json"], modules) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"] == 4
    assert list(answer["lists"]) == ["likeliest", "most surprising", "got worse", "still failing"]
    assert answer["lists"]["got worse"][0]["tokens"]["tuned"] == [0.01, 1.0, 0.1, 2.89]


def test_a_list_without_rows_says_so(job, run_id, capsys):
    result = losses_by_row("faq")
    job.result = lambda _: result.model_copy(update={"lists": {**result.lists, "got worse": ()}})

    assert run_command(["data", "losses", "faq", "--run", run_id], ("loratory.engine.commands.data", *MODULES)) == 0
    assert "\nGot worse: none\n" in capsys.readouterr().out


def test_figures_of_lm_eval_are_printed_side_by_side(job, run_id, capsys):
    job.result = lambda _: RESULT.model_copy(
        update={"lm_eval": {"base": {"arc_easy acc": 0.25}, "tuned": {"arc_easy acc": 0.5}}}
    )

    assert run_command(["evaluate", run_id, "--lm-eval", "arc_easy,own.yaml"], MODULES) == 0

    assert "arc_easy acc: base 0.2500, tuned 0.5000 (lm-eval)." in capsys.readouterr().out
    assert job.requests[0].lm_eval == ("arc_easy", "own.yaml")
