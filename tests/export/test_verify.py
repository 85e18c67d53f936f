"""What the run answers is recorded quickly: drafted for all prompts at once, and told exactly whatever the drafts are worth."""

from pathlib import Path
from typing import Any

import pytest
import torch

from loratory.engine.chat.contract import ChatTarget, PromptView
from loratory.engine.chat.target import plan_load
from loratory.engine.chat.worker.answer import load_chat_tokenizer, render_prompt
from loratory.engine.chat.worker.weights import BranchWeights, ModelSpec, Weights
from loratory.engine.data.conversation import Message
from loratory.engine.export.worker.verify import ANSWER_TOKENS, QUESTIONS, draft_answers, record_answer
from loratory.engine.hardware.processor import describe_processor
from tests.chat.tiny_adapters import ia3, lora, prefix_tuning
from tests.export.exporting import write_run
from tests.tiny_model import make_tiny_model

METHODS = {"lora": lora, "ia3": ia3, "prefix_tuning": prefix_tuning}
NO_END: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("verify") / "base", tie_word_embeddings=False, initializer_range=0.4)


@pytest.fixture(scope="module")
def branches(base, tmp_path_factory):
    """Return the tuned branch of a run of each method, and the prompts as it reads them."""

    def load(method: str) -> tuple[BranchWeights, list[PromptView]]:
        run = write_run(tmp_path_factory.mktemp("run"), base, METHODS[method](), method)
        spec = ModelSpec(base, "base", describe_processor(), torch.float32)
        weights = Weights(plan_load(ChatTarget.of_run(run)), spec, lambda _: None)
        tokenizer = load_chat_tokenizer([run / "adapter"], base, "base")
        prompts = [render_prompt((Message("user", question),), tokenizer) for question in QUESTIONS]
        return weights.branch("tuned"), prompts

    return load


def count_passes(branch: BranchWeights, monkeypatch) -> list[int]:
    """How many tokens each pass of the model reads from here on."""
    passes: list[int] = []
    forward = branch.holder.model.forward

    def counting_forward(*args: object, **kwargs: Any) -> object:
        passes.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(branch.holder.model, "forward", counting_forward)
    return passes


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_drafts_are_nearly_always_the_answer_and_then_one_pass_tells_it(method, branches, monkeypatch):
    branch, prompts = branches(method)
    references = [record_answer(branch, prompt, NO_END, ()) for prompt in prompts]
    assert all(len(reference.answer) == ANSWER_TOKENS for reference in references)
    assert (
        len({reference.answer for reference in references}) > len(prompts) / 2
    )  # they are answers, and not one word for all

    drafts = draft_answers(branch, prompts, NO_END)
    right = [number for number, reference in enumerate(references) if drafts[number] == reference.answer]
    passes = count_passes(branch, monkeypatch)
    records = [record_answer(branch, prompts[number], NO_END, drafts[number]) for number in right]

    assert len(right) >= len(prompts) - 2  # padding adds in another order, which turns a near tie
    assert len(passes) == len(right)
    assert [record.answer for record in records] == [references[number].answer for number in right]
    assert all(
        torch.equal(record.logits, references[number].logits) for record, number in zip(records, right, strict=True)
    )


def test_with_prefix_tuning_nothing_is_drafted(branches):
    branch, prompts = branches("prefix_tuning")

    assert draft_answers(branch, prompts, NO_END) == [()] * len(prompts)
    assert len(record_answer(branch, prompts[0], NO_END, ()).answer) == ANSWER_TOKENS


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong_place", [0, 5, ANSWER_TOKENS - 1])
def test_a_draft_that_goes_astray_changes_nothing(method, wrong_place, branches):
    branch, prompts = branches(method)
    reference = record_answer(branch, prompts[0], NO_END, ())
    draft = list(reference.answer)
    draft[wrong_place] = (draft[wrong_place] + 1) % 100

    records = record_answer(branch, prompts[0], NO_END, draft)

    assert records.answer == reference.answer
    assert torch.equal(records.logits, reference.logits)


def test_an_answer_ends_with_the_token_that_ends_it(branches):
    branch, prompts = branches("lora")
    whole = record_answer(branch, prompts[0], NO_END, ()).answer
    last = next(index for index in range(3, ANSWER_TOKENS) if whole[index] not in whole[:index])
    ends = frozenset({whole[last]})

    drafts = draft_answers(branch, prompts, ends)

    assert drafts[0] == record_answer(branch, prompts[0], ends, ()).answer == whole[: last + 1]
    assert record_answer(branch, prompts[0], ends, drafts[0]).answer == whole[: last + 1]
    # A draft that ends too early, or not at all.
    assert record_answer(branch, prompts[0], ends, whole[:2]).answer == whole[: last + 1]
    astray = [*whole[:last], (whole[last] + 1) % 100, 7]
    assert record_answer(branch, prompts[0], ends, astray).answer == whole[: last + 1]


def test_where_memory_holds_no_batch_it_is_written_token_by_token(branches, monkeypatch):
    branch, prompts = branches("lora")
    references = [record_answer(branch, prompt, NO_END, ()).answer for prompt in prompts[:2]]

    def refuse(**_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(branch.holder.model, "generate", refuse)
    drafts = draft_answers(branch, prompts[:2], NO_END)

    assert drafts == [(), ()]
    assert [record_answer(branch, prompt, NO_END, ()).answer for prompt in prompts[:2]] == references
