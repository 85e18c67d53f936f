"""Losses of rows and tokens are those of transformers, and each is computed once: after a stop, a kill and a change."""

import json
import os
import shutil
import signal
from collections import Counter

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratory.engine.chat.contract import ChatTarget, JobProgress
from loratory.engine.chat.worker.weights import BranchWeights
from loratory.engine.config.results import EvaluationConfig
from loratory.engine.data.passes.prepare import prepare_dataset
from loratory.engine.data.render.template import freeze_template
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.errors import DatasetError, WorkerError
from loratory.engine.evaluation.job import EvaluationJob, EvaluationRequest, read_evaluation
from loratory.engine.evaluation.worker import main
from loratory.engine.hardware.device_job import models_in_use
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.processes.messages import CancelledRequestError
from tests.chat.tiny_adapters import lora
from tests.data.workshop.made_sets import apply, make_set
from tests.evaluation.conftest import evaluate, order_of, write_run
from tests.recorded_request import RecordedRequest


@pytest.fixture
def reads(monkeypatch):
    """Return how often each sequence was read, over all branches."""
    counts: Counter[tuple[int, ...]] = Counter()
    token_losses = BranchWeights.token_losses

    def count(weights, ids, labels, images):
        counts[tuple(ids)] += 1
        return token_losses(weights, ids, labels, images)

    monkeypatch.setattr(BranchWeights, "token_losses", count)
    return counts


def all_rows(run, folder=None, **settings):
    """Return the order for all rows of the run's dataset, whose results are in a folder."""
    order = order_of(run, source=settings.pop("source", ""), **settings)
    return order if folder is None else order.model_copy(update={"folder": folder})


def lines_of(folder):
    """Return the lines of the one file of losses."""
    (file,) = folder.glob("*.losses")
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def with_data(order, source):
    dataset = order.run.dataset.model_copy(update={"source": str(source)})
    return order.model_copy(update={"run": order.run.model_copy(update={"dataset": dataset})})


@torch.inference_mode()
def losses_by_transformers(model, row) -> list[float]:
    labels = torch.tensor(row.labels[1:])
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float()
    return functional.cross_entropy(logits, labels, reduction="none")[labels >= 0].tolist()


def test_losses_of_rows_and_tokens_are_those_of_transformers_alone(home, base, run):
    order = all_rows(run)

    result = evaluate(home, order)

    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    freeze_template(tokenizer)
    training = order.run.training
    data = prepare_dataset(
        order.run.dataset, seed=training.seed, max_length=training.max_length, tokenizer=tokenizer, home=home
    )
    rows = {row.row: row for row in (*data.train, *data.held_out)}
    expected = {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    expected["base"] = {number: losses_by_transformers(model, row) for number, row in rows.items()}
    tuned = PeftModel.from_pretrained(model, run / "adapter").eval()
    expected["tuned"] = {number: losses_by_transformers(tuned, row) for number, row in rows.items()}
    assert (result.rows, [loss.row for loss in result.row_losses]) == (40, list(range(40)))
    for loss in result.row_losses:
        for branch in ("base", "tuned"):
            losses = expected[branch][loss.row]
            assert getattr(loss, branch) == pytest.approx(sum(losses) / len(losses), abs=1e-3)
    examples = [row for rows in result.lists.values() for row in rows]
    assert len(examples) > 20
    for row in examples:
        for branch, losses in row.tokens.items():
            assert losses == pytest.approx(expected[branch][row.row], abs=1e-3)
        assert "".join(row.pieces).strip() == f"It is {row.row + 1}, the number after {row.row}.<|im_end|>"


def test_each_list_begins_with_its_best_example(home, run):
    result = evaluate(home, all_rows(run))

    losses, lists = list(result.row_losses), result.lists
    assert list(lists) == ["likeliest", "most surprising", "got worse", "still failing"]
    numbers = {name: [row.row for row in rows] for name, rows in lists.items()}
    by_base = sorted(losses, key=lambda loss: loss.base)
    assert numbers["likeliest"] == [loss.row for loss in by_base[:10]]
    assert numbers["most surprising"] == [loss.row for loss in by_base[:-11:-1]]
    rises = sorted((loss for loss in losses if loss.tuned > loss.base + 0.02), key=lambda loss: loss.base - loss.tuned)
    assert numbers["got worse"] == [loss.row for loss in rises[:10]]
    hardest = sorted(losses, key=lambda loss: -loss.tuned)
    assert numbers["still failing"] == [loss.row for loss in hardest[:10]]


def test_a_second_request_is_answered_from_the_file(home, run, tmp_path, monkeypatch):
    first = evaluate(home, all_rows(run, tmp_path))
    monkeypatch.setattr(main, "Weights", None)  # nothing reads the weights again

    second = evaluate(home, all_rows(run, tmp_path))
    fewer = evaluate(home, all_rows(run, tmp_path, max_rows=4))
    held_out = evaluate(home, order_of(run).model_copy(update={"folder": tmp_path}))

    assert (second.lists, second.row_losses, second.losses) == (first.lists, first.row_losses, first.losses)
    assert [loss.row for loss in fewer.row_losses] == [0, 10, 20, 30]
    assert (held_out.rows, held_out.source) == (8, "")
    assert len(lines_of(tmp_path)) == 40


def test_after_a_stop_and_a_line_that_was_cut_off_it_continues(home, run, tmp_path, reads):
    with pytest.raises(CancelledRequestError):
        evaluate(home, all_rows(run, tmp_path), RecordedRequest(cancel_after=12))
    known = len(lines_of(tmp_path))
    assert 5 < known < 40
    (file,) = tmp_path.glob("*.losses")
    with file.open("ab") as lines:
        lines.write(b'{"name": "0123", "losses": {"base": [1.')  # the power was cut here

    result = evaluate(home, all_rows(run, tmp_path))

    assert result.rows == 40
    assert (len(reads), set(reads.values())) == (40, {2}), "each once by base and once by tuned"


def test_of_another_version_only_rows_that_changed_are_computed(home, run, data, tmp_path, reads):
    evaluate(home, all_rows(run, tmp_path))
    reads.clear()
    lines = data.read_text().splitlines()
    lines[7] = json.dumps({"instruction": "What is 7 and one?", "output": "Eight."})
    changed = tmp_path / "changed.jsonl"
    changed.write_text("\n".join([*lines[1:], lines[7]]))

    result = evaluate(home, with_data(all_rows(run, tmp_path), changed))

    assert list(reads.values()) == [2]
    assert result.rows == 40
    assert result.row_losses[6].base == result.row_losses[39].base, "equal rows are computed together"


def test_other_weights_have_a_file_of_their_own(home, base, run, data, tmp_path, reads):
    evaluate(home, all_rows(run, tmp_path, max_rows=2))
    other = write_run(tmp_path / "run", base, data, lora(r=2))

    evaluate(home, all_rows(other, tmp_path, max_rows=2))

    assert set(reads.values()) == {4}
    assert len(list(tmp_path.glob("*.losses"))) == 2


def test_several_sequences_of_a_row_have_one_mean():
    rows = [TokenizedRow(3, part, [5] * length, [-100] + [5] * (length - 1)) for part, length in enumerate((3, 7))]

    (loss,) = main._losses_by_row({"base": [4.0, 12.0], "tuned": [2.0, 6.0]}, rows)

    assert (loss.row, loss.base, loss.tuned) == (3, 2.0, 1.0)


def test_a_loss_that_is_not_a_number_counts_as_the_worst(home, run, monkeypatch):
    monkeypatch.setattr(
        BranchWeights, "token_losses", lambda _, ids, labels, images: [float("nan")] * sum(x >= 0 for x in labels)
    )

    result = evaluate(home, all_rows(run, max_rows=2))

    assert result.row_losses[0].tuned == 1e4


@pytest.mark.e2e
def test_a_killed_job_continues_and_a_set_keeps_its_version(home, run, tmp_path):
    rows = [{"instruction": f"Question {number}?", "output": f"Answer {number}."} for number in range(300)]
    make_set(home, tmp_path, rows)
    apply(home, {"kind": "exclude", "rows": "1"})
    run = shutil.copytree(run, tmp_path / "run")
    settings = EvaluationConfig(answered_rows=0, general_text=False, source="set:faq")
    request = EvaluationRequest(target=ChatTarget.of_run(run), settings=settings)
    job = EvaluationJob(home, request, choose=lambda _: describe_processor())

    def kill(progress):
        if "row 5 of" in progress.message:
            os.kill(models_in_use(home)[0].process.pid, signal.SIGKILL)

    with pytest.raises(WorkerError):
        job.run(kill)
    known = len(lines_of(run / "evaluations"))
    assert 5 <= known < 299
    assert read_evaluation(run, all_rows=True) is None

    messages: list[JobProgress] = []
    result = job.run(messages.append)

    names = [line["name"] for line in lines_of(run / "evaluations")]
    assert len(names) == len(set(names)) == 299
    assert any(f"row {known + 1} of 299" in progress.message for progress in messages)
    assert not any("row 5 of" in progress.message for progress in messages)
    assert read_evaluation(run, all_rows=True) == result
    assert read_evaluation(run) is None
    assert result.source.startswith("set:faq@")
    assert result.row_losses[0].row == 1, "numbers are those of the source"


def test_a_set_that_is_not_there_is_refused(home, run):
    settings = EvaluationConfig(source="set:other")
    job = EvaluationJob(home, EvaluationRequest(target=ChatTarget.of_run(run), settings=settings))

    with pytest.raises(DatasetError, match="does not exist"):
        job.run()
