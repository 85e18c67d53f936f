"""Base and tuned are measured on the rows that training held out, with the masking that training had."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.chat.contract import Branch, ChatTarget
from engine.chat.target import plan_load
from engine.chat.worker.answer import Answer
from engine.config.load import config_from_mapping, config_to_yaml
from engine.config.objectives import DPO, KTO
from engine.config.results import EvaluationConfig
from engine.data.passes.prepare import prepare_dataset, spread_evenly
from engine.data.render.template import freeze_template
from engine.data.render.tokenize import TokenizedRow
from engine.errors import DatasetError, RunError
from engine.evaluation.general_text import general_text
from engine.evaluation.job import (
    DataThen,
    EvaluationJob,
    EvaluationOrder,
    EvaluationRequest,
    EvaluationResult,
    preference_sentences,
    read_evaluation,
)
from engine.evaluation.ratings import measure_ratings, rating_words
from engine.evaluation.worker.answers import decode, split_at_answer
from engine.evaluation.worker.batched_answers import BatchedAnswers
from engine.evaluation.worker.main import EvaluationWorker
from engine.hardware.device_job import ModelInUse, models_in_use
from engine.hardware.processor import describe_processor
from engine.processes.messages import CancelledRequestError
from tests.chat.tiny_adapters import lora, make_adapter, prefix_tuning
from tests.recorded_request import RecordedRequest
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("eval") / "base", tie_word_embeddings=False, initializer_range=0.4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"instruction": f"What is {number} and one?", "output": f"It is {number + 1}, the number after {number}."}
        for number in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_run(folder: Path, base: Path, data: Path, adapter_config: object, method: str = "lora") -> Path:
    make_adapter(base, folder / "adapter", adapter_config)
    config = config_from_mapping(
        {
            "model": {"id": str(base), "compute_dtype": "float32"},
            "dataset": {"source": str(data), "eval_fraction": 0.2},
            "adapter": {"method": method},
            "training": {"max_length": 256},
        }
    )
    (folder / "config.yaml").write_text(config_to_yaml(config))
    return folder


@pytest.fixture(scope="module")
def run(base, data, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", base, data, lora())


def order_of(run: Path, **settings: Any) -> EvaluationOrder:
    plan = plan_load(ChatTarget.of_run(run))
    from engine.runs.run import RunFolder

    values = {"answered_rows": 0, "max_new_tokens": 8, "general_text": False, **settings}
    return EvaluationOrder(
        plan=plan,
        run=RunFolder(run).read_config(),
        settings=EvaluationConfig(**values),
        device=describe_processor(),
    )


def evaluate(home, order: EvaluationOrder, request=None) -> EvaluationResult:
    answer = EvaluationWorker(home).evaluate(order.model_dump(mode="json"), request or RecordedRequest())
    return EvaluationResult.model_validate(answer)


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


def held_out(run: Path, home, order: EvaluationOrder, objective=None):
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    freeze_template(tokenizer)
    training = order.run.training
    return prepare_dataset(
        order.run.dataset, seed=training.seed, max_length=training.max_length, tokenizer=tokenizer, home=home,
        objective=objective,
    ).held_out  # fmt: skip


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


@torch.inference_mode()
def log_probability(model, row) -> float:
    """Of the trained tokens, the whole sequence at once."""
    labels = torch.tensor(row.labels[1:])
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float()
    return -float(functional.cross_entropy(logits, labels, reduction="sum"))


def expected_margins(model, pairs) -> list[float]:
    """By how much each chosen answer is likelier than the rejected one."""
    return [log_probability(model, pair) - log_probability(model, pair.rejected) for pair in pairs]


def test_pairs_are_measured_for_base_start_and_result(home, base, run, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": f"What is {number} and one?",
            "chosen": f"It is {number + 1}.",
            "rejected": f"No idea, {number} maybe?",
        }
        for number in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuned = write_run(tmp_path / "tuned", base, file, lora(), "lora")
    make_adapter(base, tuned / "adapter", lora(), seed=2)
    settings = yaml.safe_load((tuned / "config.yaml").read_text())
    settings["adapter"]["warm_start"] = str(run / "adapter")
    settings["training"] |= {"objective": "dpo", "beta": 0.3}
    (tuned / "config.yaml").write_text(config_to_yaml(config_from_mapping(settings)))
    request = EvaluationRequest(
        target=ChatTarget.of_run(tuned),
        settings=EvaluationConfig(answered_rows=1, max_new_tokens=4, general_text=False),
    )

    order, _ = EvaluationJob(home, request)._order(describe_processor())
    result = evaluate(home, order)

    found = result.preference
    assert found is not None
    assert (found.pairs, found.reference, found.beta, result.start) == (8, "second", 0.3, "adapter")
    pairs = held_out(tuned, home, order, DPO)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    margins: dict[Branch, list[float]] = {"base": expected_margins(model, pairs)}
    model = PeftModel.from_pretrained(model, run / "adapter", adapter_name="second").eval()
    margins["second"] = expected_margins(model, pairs)
    model.load_adapter(tuned / "adapter", adapter_name="tuned")
    model.set_adapter("tuned")
    margins["tuned"] = expected_margins(model.eval(), pairs)
    for branch, expected in margins.items():
        assert found.branches[branch].margin == pytest.approx(sum(expected) / 8, rel=1e-4, abs=1e-4)
        assert found.branches[branch].preferred == sum(margin > 0 for margin in expected)
    gains = [now - then for now, then in zip(margins["tuned"], margins["second"], strict=True)]
    assert found.branches["tuned"].reward_margin == pytest.approx(0.3 * sum(gains) / 8, rel=1e-3, abs=1e-4)
    assert found.branches["tuned"].gained == sum(gain > 0 for gain in gains)
    assert found.branches["second"].gained is None
    assert set(result.answered[0].answers) == {"base", "tuned", "second"}
    assert "held-out pairs" in preference_sentences(result)[0]


def test_the_rewards_of_ratings_are_those_that_training_logs(home, base, tmp_path):
    file = tmp_path / "ratings.jsonl"
    rows = [
        {"prompt": f"What is {number} and one?", "completion": f"It is {number + 1}.", "label": number % 3 > 0}
        for number in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuned = write_run(tmp_path / "tuned", base, file, lora(), "lora")
    make_adapter(base, tuned / "adapter", lora(), seed=2)
    settings = yaml.safe_load((tuned / "config.yaml").read_text())
    settings["training"] |= {"objective": "kto", "beta": 0.3}
    (tuned / "config.yaml").write_text(config_to_yaml(config_from_mapping(settings)))

    order = order_of(tuned, general_text=False)
    result = evaluate(home, order)

    found = result.ratings
    assert found is not None
    held = held_out(tuned, home, order, KTO)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = [log_probability(model, row) for row in held]
    model = PeftModel.from_pretrained(model, tuned / "adapter").eval()
    after = [log_probability(model, row) for row in held]
    rewards = [(0.3 * (now - then), row.desirable) for now, then, row in zip(after, before, held, strict=True)]
    good, bad = ([reward for reward, label in rewards if label is wanted] for wanted in (True, False))
    assert (found.desirable, found.undesirable, found.reference) == (len(good), len(bad), "base")
    assert good
    assert bad
    own = found.branches["tuned"]
    assert own.reward_desirable == pytest.approx(sum(good) / len(good), rel=1e-3, abs=1e-4)
    assert own.reward_undesirable == pytest.approx(sum(bad) / len(bad), rel=1e-3, abs=1e-4)
    assert own.right == sum(reward > 0 for reward in good) + sum(reward < 0 for reward in bad)
    assert result.preference_accuracy == own.right / 8
    assert "base" not in found.branches
    warm = order.run.model_copy(update={"adapter": order.run.adapter.model_copy(update={"warm_start": "gone"})})
    gone = evaluate(
        home, order.model_copy(update={"run": warm, "settings": EvaluationConfig(max_rows=1, answered_rows=0)})
    )
    assert gone.ratings is None
    assert any("cannot be loaded any more" in note for note in gone.notes)


def test_ratings_of_one_label_or_one_row_are_told_as_what_they_are():
    found = measure_ratings({"base": [-2.0, -2.0, -2.0], "tuned": [-1.0, -2.0, -3.0]}, [True, True, True], "base", 0.5)

    assert found is not None
    assert (found.right, found.undesirable, found.branches["tuned"].difference) == (1, 0, None)  # no gain is not right
    words = rating_words(found, {"base": "the base model"})
    assert "(1 of 3 desirable)" in words[0]
    assert "Mean reward +0.000. Every completion is desirable" in words[2]
    alone = measure_ratings({"second": [-2.0], "base": [-9.0], "tuned": [-3.0]}, [False], "second", 0.1)
    assert alone is not None
    assert alone.accuracy == 1.0
    assert (alone.branches["base"].right, alone.branches["base"].reward_desirable) == (1, None)
    assert "between 21% and 100%" in rating_words(alone, {"second": "its start"})[0]
    assert measure_ratings({"base": [-1.0], "tuned": [-1.0]}, [True], "second", 0.1) is None  # the start is gone
    assert measure_ratings({"base": [], "tuned": []}, [], "base", 0.1) is None


def test_a_sequence_read_in_pieces_has_the_same_loss(home, run, monkeypatch):
    whole = evaluate(home, order_of(run)).losses

    monkeypatch.setattr("engine.chat.worker.weights.PIECE_TOKENS", 7)

    for branch, measured in evaluate(home, order_of(run)).losses.items():
        assert measured.loss == pytest.approx(whole[branch].loss, rel=1e-5)
        assert measured.tokens == whole[branch].tokens


def test_forgetting_is_measured_on_general_text_without_a_template(home, base, run, monkeypatch):
    passages = general_text()[:3]
    monkeypatch.setattr("engine.evaluation.general_text.general_text", lambda: passages)

    result = evaluate(home, order_of(run, max_rows=1, general_text=True))

    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = [tokenizer(passage.text)["input_ids"][:256] for passage in passages]
    rows = [TokenizedRow(row, 0, tokens, tokens) for row, tokens in enumerate(ids)]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = expected_loss(model, rows)
    after = expected_loss(PeftModel.from_pretrained(model, run / "adapter").eval(), rows)
    assert result.general_losses["base"].loss == pytest.approx(before, rel=1e-5)
    assert result.general_losses["tuned"].tokens == sum(len(tokens) - 1 for tokens in ids)
    assert abs(after / before - 1) > 1e-4
    assert result.forgot == pytest.approx(after / before - 1, abs=1e-5)


def test_forgetting_is_not_measured_unless_asked_for(home, run):
    result = evaluate(home, order_of(run, max_rows=1))

    assert result.general_losses == {}
    assert result.forgot is None
    assert EvaluationResult.model_validate(result.model_dump(exclude={"general_losses"})).forgot is None  # older files


def test_both_branches_answer_the_same_rows_and_the_worst_come_first(home, run):
    result = evaluate(home, order_of(run, answered_rows=5))

    assert len(result.answered) == 5
    worth = [row.answers["tuned"].scores.chrf for row in result.answered]
    assert worth == sorted(worth)
    row = result.answered[0]
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
    same = DataThen(train_rows=32, held_out_rows=8)

    assert evaluate(home, order.model_copy(update={"data_then": same})).notes == ()
    (note,) = evaluate(home, order.model_copy(update={"data_then": DataThen(train_rows=31)})).notes
    assert note.startswith("The data has changed since this run was trained")


def test_a_run_that_held_nothing_out_is_refused(home, run):
    order = order_of(run)
    nothing = order.run.dataset.model_copy(update={"eval_fraction": 0.0})
    order = order.model_copy(update={"run": order.run.model_copy(update={"dataset": nothing})})

    with pytest.raises(DatasetError, match="has no held-out rows"):
        evaluate(home, order)


@pytest.mark.parametrize("after", [3, 9])
def test_an_evaluation_is_stopped_at_the_next_row(home, run, after):
    request = RecordedRequest(cancel_after=after)

    with pytest.raises(CancelledRequestError):
        evaluate(home, order_of(run, answered_rows=5), request)
    assert len(request.told) == after


@pytest.mark.parametrize("rows", [1, 5], ids=["alone", "side by side"])
def test_an_evaluation_is_stopped_in_the_midst_of_an_answer(home, run, monkeypatch, rows):
    advanced, kind = [], Answer if rows == 1 else BatchedAnswers
    advance = kind.advance

    def note(answer):
        advanced.append(answer)
        return advance(answer)

    monkeypatch.setattr(kind, "advance", note)
    finished = RecordedRequest()
    evaluate(home, order_of(run, max_rows=rows, answered_rows=rows), finished)
    assert advanced
    steps = len(advanced)
    before_the_answers = next(n for n, told in enumerate(finished.told) if "Answering" in told["message"])
    advanced.clear()

    with pytest.raises(CancelledRequestError):
        evaluate(
            home,
            order_of(run, max_rows=rows, answered_rows=rows),
            RecordedRequest(cancel_after=before_the_answers + 1),
        )
    assert len(advanced) < steps


def test_answers_side_by_side_are_those_one_by_one_and_are_counted(home, run, monkeypatch):
    request = RecordedRequest()
    together = evaluate(home, order_of(run, answered_rows=8), request)
    told = [one["message"] for one in request.told if "Answering" in one["message"]]
    monkeypatch.setattr("engine.evaluation.worker.answers.most_rows", lambda *_: 1)

    assert together.answered == evaluate(home, order_of(run, answered_rows=8)).answered
    assert told[-1] == "Answering, 16 of 16 answers."
    assert told == sorted(told, key=lambda message: int(message.split()[1]))


def test_memory_that_runs_out_halves_the_rows_side_by_side(home, run, monkeypatch):
    expected = evaluate(home, order_of(run, answered_rows=5)).answered
    sizes = []

    class Large(BatchedAnswers):
        def __init__(self, weights, prompts, *others):
            sizes.append(len(prompts))
            if len(prompts) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            super().__init__(weights, prompts, *others)

    monkeypatch.setattr("engine.evaluation.worker.answers.BatchedAnswers", Large)

    assert evaluate(home, order_of(run, answered_rows=5)).answered == expected
    assert sizes == [5, 3, 2, 2] * 2


def test_rows_that_change_each_other_are_answered_one_by_one(home, run, monkeypatch):
    expected = evaluate(home, order_of(run, answered_rows=3)).answered
    monkeypatch.setattr(BatchedAnswers, "keeps_rows_apart", lambda _: False)
    monkeypatch.setattr(BatchedAnswers, "advance", lambda _: pytest.fail("answered side by side"))

    assert evaluate(home, order_of(run, answered_rows=3)).answered == expected


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
    told: list[Any] = []
    needs: list[ModelInUse] = []

    def note(progress):
        told.append(progress)
        needs.extend(models_in_use(home))

    result = EvaluationJob(home, request, choose=lambda _: describe_processor()).run(note)

    assert read_evaluation(run) == result
    assert set(result.losses) == {"base", "tuned"}
    assert any(progress.fraction == 1.0 for progress in told)
    assert {use.purpose for use in needs} == {"evaluation"}  # its model stays in the cache
    assert models_in_use(home) == []
