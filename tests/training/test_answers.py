"""Answers at evaluations: which prompts, the same answers as by greedy search, and a training that does not notice."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from loratory.engine.config.rules import answer_tokens
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.runs.history.events import AnswersData
from loratory.engine.training.answers import Prompt, PromptAnswers, choose_prompts, virtual_token_cache
from loratory.engine.training.callbacks import TrainerHooks
from tests.training.preference_rows import make_pairs, make_ratings
from tests.training.tiny_training import make_config, make_rows, make_training, train_tiny

ROWS = make_rows(12)
PROMPTS = [Prompt(0, tuple(range(20, 30))), Prompt(1, tuple(range(40, 44)))]


@dataclass
class Reports:
    """The events of a worker that these tests read."""

    answers: list[AnswersData] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def emit(self, data: AnswersData) -> None:
        self.answers.append(data)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def answers_of(folder: Path, prompts: Any = lambda: PROMPTS) -> tuple[Any, Reports]:
    """Return the function that answers the two prompts, and what it reports."""
    events: Any = Reports()
    return PromptAnswers(events, AutoTokenizer.from_pretrained(folder), prompts, 8).answer, events


METHODS = {
    "LoRA with dropout": {"adapter": {"lora_dropout": 0.2}},
    "padded rows": {"model": {"attn_implementation": "eager"}, "adapter": {"lora_dropout": 0.2}},
    "checkpointing": {"training": {"gradient_checkpointing": True}, "adapter": {"lora_dropout": 0.2}},
    "bfloat16": {"model": {"compute_dtype": "bfloat16"}, "adapter": {"lora_dropout": 0.2}},
    "whole model": {"adapter": {"method": "none"}},
    "AdaLoRA": {"adapter": {"method": "adalora", "lora_dropout": 0.2}},
    "prefix tuning": {"adapter": {"method": "prefix_tuning", "num_virtual_tokens": 4}},
    "prompt tuning": {"adapter": {"method": "prompt_tuning", "num_virtual_tokens": 4}},
    "P-tuning": {"adapter": {"method": "p_tuning", "num_virtual_tokens": 4}},
    "QLoRA": {"model": {"quantization": "nf4"}, "adapter": {"lora_dropout": 0.2}},
    "int8": {"model": {"quantization": "int8"}},
}
QUICK = ("LoRA with dropout", "checkpointing", "prefix tuning", "QLoRA")


@pytest.mark.parametrize(
    "sections",
    [pytest.param(values, marks=() if name in QUICK else pytest.mark.e2e) for name, values in METHODS.items()],
    ids=METHODS.keys(),
)
def test_training_is_the_same_with_and_without_answers(tiny_model_folder, tmp_path, sections):
    config = make_config(tiny_model_folder, **sections)
    plain = train_tiny(config, ROWS, tmp_path)
    random_after = torch.get_rng_state()
    answer, reports = answers_of(tiny_model_folder)

    hooks = TrainerHooks(answer=answer)
    answering = make_training(config, ROWS, tmp_path, held_out=ROWS[:3], hooks=hooks)
    previous = hooks.on_logged
    hooks.on_logged = lambda step: (answering.trainer.measure_held_out(), previous(step))  # type: ignore[assignment]
    answering.trainer.measure_held_out()
    answering.trainer.train()

    assert answering.losses == plain.losses
    assert torch.equal(torch.get_rng_state(), random_after)
    assert all(torch.equal(weight, answering.weights()[name]) for name, weight in plain.weights().items())
    assert [answers.step for answers in reports.answers] == [0, *(step.step for step in plain.steps)]
    assert all(answers.answers[0] for answers in reports.answers)


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo"])
def test_preferences_are_learnt_the_same_with_and_without_answers_to_their_prompts(
    objective, tiny_model_folder, tmp_path
):
    rows = (make_ratings if objective == "kto" else make_pairs)(11)
    settings = {
        "objective": objective,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
    }
    config = make_config(tiny_model_folder, adapter={"lora_dropout": 0.2}, training=settings)
    prompts = choose_prompts("", rows[8:], None)
    answer, reports = answers_of(tiny_model_folder, lambda: prompts)
    plain = make_training(config, rows[:8], tmp_path, held_out=rows[8:])
    answering = make_training(config, rows[:8], tmp_path, held_out=rows[8:], hooks=TrainerHooks(answer=answer))

    measured = []
    for training in (plain, answering):
        training.trainer.measure_held_out()
        training.trainer.train()
        measured.append(training.trainer.measure_held_out())

    assert answering.losses == plain.losses
    assert measured[0].metrics == measured[1].metrics
    assert [answers.step for answers in reports.answers] == [0, 3]
    assert len(prompts) == len(reports.answers[1].answers) == (2 if objective == "kto" else 3)  # of good answers alone
    assert reports.warnings == []


def search(model: Any, prompt: tuple[int, ...], tokenizer: Any) -> str:
    """Return the text of eight tokens, each the most likely one; less where the answer ends."""
    ids, special = torch.tensor([prompt]), set(tokenizer.all_special_ids)
    for _ in range(8):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    tokens = itertools.takewhile(lambda token: token not in special, ids[0, len(prompt) :].tolist())
    return tokenizer.decode(list(tokens)).strip()


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # PEFT's, in its forward pass
@pytest.mark.parametrize(
    "name", ["LoRA with dropout", "whole model", "prefix tuning", "prompt tuning", "P-tuning", "IA3", "QLoRA"]
)
def test_answers_are_those_of_a_greedy_search_without_a_cache(tiny_model_folder, tmp_path, name):
    sections = METHODS.get(name, {"adapter": {"method": "ia3"}})
    answer, reports = answers_of(tiny_model_folder)
    hooks = TrainerHooks(answer=answer)
    training = make_training(make_config(tiny_model_folder, **sections), ROWS, tmp_path, held_out=ROWS[:3], hooks=hooks)
    training.trainer.measure_held_out()
    for weight in training.trainer.model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))

    seconds = training.trainer.measure_held_out().seconds
    before, after = reports.answers
    with training.trainer._passes.answering(training.trainer.model) as model:
        expected = [search(model, prompt.ids, AutoTokenizer.from_pretrained(tiny_model_folder)) for prompt in PROMPTS]

    assert list(after.answers) == expected
    assert after.answers != before.answers or "tuning" in name  # virtual tokens hardly change a model this small
    assert 0 < after.seconds < seconds


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # PEFT's, in its forward pass
@pytest.mark.parametrize("name", ["prefix tuning", "prompt tuning", "P-tuning"])
def test_virtual_tokens_are_read_before_a_prompt(tiny_model_folder, tmp_path, name):
    training, ids = (
        train_tiny(make_config(tiny_model_folder, **METHODS[name]), ROWS, tmp_path),
        torch.tensor([[7, 8, 9]]),
    )

    with training.trainer._passes.answering(training.trainer.model) as model:
        base = model.get_base_model()
        expected, without = model(input_ids=ids).logits[:, -1], base(input_ids=ids).logits[:, -1]
        answer = base(input_ids=ids, cache=virtual_token_cache(model)).logits[:, -1]
        with model.disable_adapter():
            assert virtual_token_cache(model) is None

    torch.testing.assert_close(answer, expected)
    assert not torch.allclose(answer, without)


def test_a_failure_ends_the_answers_and_not_the_run(tiny_model_folder):
    answer, reports = answers_of(tiny_model_folder)

    answer(SimpleNamespace(get_base_model=lambda: None), 5)
    answer(None, 10)  # not tried again

    [warning] = reports.warnings
    assert warning.startswith("From step 5 on, prompts are not answered: 'NoneType' object has no attribute")
    assert not reports.answers


def row(number: int, prompt: int, answer: int, **traits: Any) -> TokenizedRow:
    """Return a row with so many tokens in prompt and answer."""
    ids = [10 + number] * (prompt + answer)
    return TokenizedRow(number, 0, ids, [-100] * prompt + ids[prompt:], **traits)


def test_typical_prompts_have_the_median_length_and_are_different():
    rows = [
        row(0, 90, 4),
        row(1, 10, 10),
        row(2, 11, 10),
        row(3, 10, 90),
        row(4, 9, 10),
        row(5, 10, 11, desirable=False),
    ]
    copy, text = TokenizedRow(6, 0, rows[1].input_ids, rows[1].labels), TokenizedRow(7, 0, [1] * 20, [1] * 20)

    prompts = choose_prompts("", [*rows, copy, text], None)

    assert [prompt.row for prompt in prompts] == [2, 6, 4]
    assert prompts == choose_prompts("", [*rows, copy, text], None)
    assert len(prompts[1].ids) == len(prompts[1].reference) == 10


def test_a_person_names_rows_or_types_prompts(tiny_model_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)

    of_row, by_hand = choose_prompts("3 | What is a rank?", [row(2, 4, 4)], tokenizer)

    assert of_row.ids == (12,) * 4
    assert "What is a rank?" in tokenizer.decode(by_hand.ids)
    with pytest.raises(ValueError, match="row 9 is not held out"):
        choose_prompts("9", [row(2, 4, 4)], tokenizer)


@pytest.mark.parametrize(
    ("setting", "parameters", "kind", "tokens"),
    [(None, 10**9, "cpu", 64), (None, 2 * 10**9, "cpu", 0), (None, 2 * 10**9, "cuda", 64), (None, 7 * 10**9, "cuda", 0), (0, 1, "cpu", 0), (9, 7 * 10**10, "cpu", 9)],
)  # fmt: skip
def test_large_models_answer_only_where_that_is_set(setting, parameters, kind, tokens):
    assert answer_tokens(TrainingConfig(eval_max_new_tokens=setting), parameters, kind) == tokens
