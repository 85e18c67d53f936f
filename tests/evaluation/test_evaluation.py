"""Base and tuned are measured on the rows that training held out, with the masking that training had."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.worker.answer import Answer
from loratory.engine.config.results import EvaluationConfig, EvaluationSection
from loratory.engine.data.passes.prepare import spread_evenly
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError, RunError
from loratory.engine.evaluation.general_text import general_text
from loratory.engine.evaluation.job import (
    EvaluationJob,
    EvaluationRequest,
    read_evaluation,
)
from loratory.engine.evaluation.worker.answers import BatchedAnswers
from loratory.engine.hardware.device_job import ModelInUse, models_in_use
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.processes.messages import CancelledRequestError
from loratory.engine.training.answers import decode, split_at_answer
from tests.chat.tiny_adapters import lora, prefix_tuning
from tests.data.checks import check_dataset
from tests.evaluation.conftest import evaluate, held_out, order_of, write_run
from tests.recorded_request import RecordedRequest
from tests.replaced_base import record_base, scale_a_tensor


@torch.inference_mode()
def expected_loss(model, rows) -> float:
    """Plain cross entropy over whole sequences, as any script would have it."""
    total, tokens = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float()
        labels = torch.tensor(row.labels[1:])
        total += float(functional.cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    return total / tokens


@pytest.mark.parametrize("method", ["lora", "prefix_tuning"])
def test_losses_are_those_of_plain_cross_entropy(home, base, data, tmp_path, method):
    run = write_run(tmp_path / "run", base, data, lora() if method == "lora" else prefix_tuning(), method)
    order = order_of(run)

    result = evaluate(home, order)

    rows = held_out(run, home, order)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    assert result.losses["base"].loss == pytest.approx(expected_loss(model, rows), rel=1e-5)
    tuned = PeftModel.from_pretrained(model, run / "adapter").eval()
    assert result.losses["tuned"].loss == pytest.approx(expected_loss(tuned, rows), rel=1e-5)
    assert result.losses["base"].loss != pytest.approx(result.losses["tuned"].loss, rel=1e-3)
    assert result.rows == len(rows) == 8
    assert result.losses["base"].perplexity == pytest.approx(2.718281828 ** result.losses["base"].loss, rel=1e-6)


def test_a_sequence_read_in_pieces_has_the_same_loss(home, run, monkeypatch):
    whole = evaluate(home, order_of(run)).losses

    monkeypatch.setattr("loratory.engine.chat.worker.weights.PIECE_TOKENS", 7)

    for branch, measurement in evaluate(home, order_of(run)).losses.items():
        assert measurement.loss == pytest.approx(whole[branch].loss, rel=1e-5)
        assert measurement.tokens == whole[branch].tokens


def test_forgetting_is_measured_on_general_text_without_a_template(home, base, run, monkeypatch):
    passages = general_text()[:3]
    monkeypatch.setattr("loratory.engine.evaluation.general_text.general_text", lambda: passages)

    result = evaluate(home, order_of(run, max_rows=1, general_text=True))

    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = [tokenizer(passage["text"])["input_ids"][:256] for passage in passages]
    rows = [TokenizedRow(row, 0, tokens, tokens) for row, tokens in enumerate(ids)]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = expected_loss(model, rows)
    after = expected_loss(PeftModel.from_pretrained(model, run / "adapter").eval(), rows)
    assert result.general_losses["base"].loss == pytest.approx(before, rel=1e-5)
    assert result.general_losses["tuned"].tokens == sum(len(tokens) - 1 for tokens in ids)
    assert abs(after / before - 1) > 1e-4
    assert result.forgetting == pytest.approx(after / before - 1, abs=1e-5)


def test_both_branches_answer_the_same_rows_and_the_worst_come_first(home, run):
    result = evaluate(home, order_of(run, answered_rows=5))

    assert len(result.answered_rows) == 5
    worth = [row.answers["tuned"].scores.chrf for row in result.answered_rows]
    assert worth == sorted(worth)
    row = result.answered_rows[0]
    assert row.reference.startswith("It is ")
    assert row.prompt.endswith("<|im_start|>assistant\n")
    assert all(0 < answer.tokens <= 8 for answer in row.answers.values())
    assert result.scores["tuned"].chrf == pytest.approx(sum(worth) / 5)
    assert result.scores["base"].rows == 5


def test_fewer_rows_are_spread_over_all(home, run):
    result = evaluate(home, order_of(run, max_rows=3))

    assert result.rows == 3
    assert spread_evenly(list(range(10)), 3) == [0, 3, 6]
    assert spread_evenly([1, 2], 5) == [1, 2]


def test_data_that_has_changed_since_is_noted(home, run):
    order = order_of(run)
    data = order.run.dataset
    same = check_dataset(data, SourceOptions(), seed=order.run.training.seed).fingerprint

    assert evaluate(home, order.model_copy(update={"data_fingerprint": same})).notes == ()
    (note,) = evaluate(home, order.model_copy(update={"data_fingerprint": "another"})).notes
    assert "has changed" in note


def test_a_run_that_held_nothing_out_is_refused(home, run):
    order = order_of(run)
    nothing = order.run.dataset.model_copy(update={"eval_fraction": 0.0})
    order = order.model_copy(update={"run": order.run.model_copy(update={"dataset": nothing})})

    with pytest.raises(DatasetError, match="has no held-out rows"):
        evaluate(home, order)


def test_a_run_that_held_nothing_out_answers_its_test_sets_all_the_same(home, run, tmp_path):
    order, file = order_of(run), tmp_path / "sums.jsonl"
    file.write_text('{"prompt": "2 + 2?", "answer": "4"}\n{"prompt": "1 + 1?", "answer": "2"}\n')
    test = {"source": str(file), "scorers": [{"scorer": "number"}], "max_new_tokens": 4}
    sections = {
        "dataset": order.run.dataset.model_copy(update={"eval_fraction": 0.0}),
        "evaluation": EvaluationSection.model_validate({"tests": [test]}),
    }

    result = evaluate(home, order.model_copy(update={"run": order.run.model_copy(update=sections)}))

    assert (result.losses, result.rows) == ({}, 0)
    (answers,) = result.tests
    assert (answers.name, set(answers.branches)) == ("sums.jsonl", {"base", "tuned"})


@pytest.mark.parametrize("after", [3, 9])
def test_an_evaluation_is_stopped_at_the_next_row(home, run, after):
    request = RecordedRequest(cancel_after=after)

    with pytest.raises(CancelledRequestError):
        evaluate(home, order_of(run, answered_rows=5), request)
    assert len(request.progress_log) == after


@pytest.mark.parametrize("rows", [1, 5], ids=["alone", "side by side"])
def test_an_evaluation_is_stopped_in_the_midst_of_an_answer(home, run, monkeypatch, rows):
    steps, kind = [], Answer if rows == 1 else BatchedAnswers
    advance = kind.advance
    monkeypatch.setattr(kind, "advance", lambda answer: steps.append(answer) or advance(answer))
    settings, finished = {"max_rows": rows, "answered_rows": rows}, RecordedRequest()
    evaluate(home, order_of(run, **settings), finished)
    all_steps = len(steps)
    first_answer = next(n for n, progress in enumerate(finished.progress_log) if "Answering" in progress["message"])
    steps.clear()

    with pytest.raises(CancelledRequestError):
        evaluate(home, order_of(run, **settings), RecordedRequest(cancel_after=first_answer + 1))
    assert len(steps) < all_steps


def test_answers_side_by_side_are_those_one_by_one_and_are_counted(home, run, monkeypatch):
    request = RecordedRequest()
    together = evaluate(home, order_of(run, answered_rows=8), request)
    progress = [entry["message"] for entry in request.progress_log if "Answering" in entry["message"]]
    monkeypatch.setattr("loratory.engine.evaluation.worker.answers.most_rows", lambda *_: 1)

    assert together.answered_rows == evaluate(home, order_of(run, answered_rows=8)).answered_rows
    assert progress[-1] == "Answering, 16 of 16 answers."
    assert progress == sorted(progress, key=lambda message: int(message.split()[1]))


def test_a_row_is_parted_at_its_last_answer():
    row = TokenizedRow(0, 0, [1, 2, 3, 4, 5, 6], [-100, 2, -100, -100, 5, 6])
    plain = TokenizedRow(0, 0, [1, 2], [1, 2])

    assert split_at_answer(row) == ((1, 2, 3, 4), (5, 6))
    assert split_at_answer(plain) is None


def test_references_are_read_without_control_tokens(run):
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    ids = [*tokenizer("It is 4.")["input_ids"], tokenizer.eos_token_id]

    assert decode(ids, tokenizer) == "It is 4."


def test_only_a_run_can_be_evaluated(home, run):
    job = EvaluationJob(home, EvaluationRequest(target=ChatTarget.of_run(run / "adapter")))

    with pytest.raises(RunError, match="Only a run can be evaluated"):
        job.run()


@pytest.mark.e2e
def test_a_job_measures_in_a_process_of_its_own_and_keeps_the_result(home, run):
    assert read_evaluation(run) is None
    request = EvaluationRequest(
        target=ChatTarget.of_run(run), settings=EvaluationConfig(answered_rows=2, max_new_tokens=4)
    )
    messages: list[Any] = []
    needs: list[ModelInUse] = []

    def note(progress):
        messages.append(progress)
        needs.extend(models_in_use(home))

    result = EvaluationJob(home, request, choose=lambda _: describe_processor()).run(note)

    assert read_evaluation(run) == result
    assert set(result.losses) == {"base", "tuned"}
    assert any(progress.fraction == 1.0 for progress in messages)
    assert {use.purpose for use in needs} == {"evaluation"}  # its model stays in the cache
    assert models_in_use(home) == []


def test_a_base_that_was_replaced_is_noted(home, base, data, tmp_path):
    base = Path(shutil.copytree(base, tmp_path / "base"))
    run = write_run(tmp_path / "run", base, data, lora())
    record_base(run, base)
    assert evaluate(home, order_of(run)).notes == ()

    scale_a_tensor(base)

    (note,) = evaluate(home, order_of(run)).notes
    assert note.startswith("The weights of base have changed since ")
