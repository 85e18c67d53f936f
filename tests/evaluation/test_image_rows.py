"""Held-out rows with images: side by side and alone, answers and losses are the same, and those of transformers."""

import pytest
import torch

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.worker.answer import render_prompt
from loratory.engine.config.results import SamplingConfig
from loratory.engine.data.conversation import IMAGE_MARK, Message
from loratory.engine.data.render.images import images_of
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.evaluation.worker.answers import BranchWriter
from loratory.engine.training.answers import Prompt
from tests.chat.lively_vision import QUESTION, TOKENS, family_in, load
from tests.tiny_vision import MEMBERS

FAMILIES = [member.model_type for member in MEMBERS]
GREEDY = SamplingConfig(temperature=0, max_new_tokens=TOKENS)


def conversations(family):
    return [
        (family.turn(f"{IMAGE_MARK}and {IMAGE_MARK} which is blue?"),),
        (Message("user", QUESTION, images=(family.refs[1],)),),
        (Message("user", "what is a rank, and how many are there?"),),
        (Message("user", QUESTION, images=(family.refs[2],)),),
    ]


def loaded(home, root, model_type):
    family = family_in(root, model_type)
    active = load(home, family, ChatTarget.of_run(family.adapter))._require_loaded()
    prompts = [
        Prompt(n, render_prompt(messages, active.tokenizer).ids, images=images_of(messages))
        for n, messages in enumerate(conversations(family))
    ]
    return family, active, sorted(prompts, key=lambda prompt: -len(prompt.ids))


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("copies", [1, 2])
def test_answers_side_by_side_are_those_of_generate(model_type, copies, home, tmp_path_factory, monkeypatch):
    family, active, prompts = loaded(home, tmp_path_factory.getbasetemp() / "vision", model_type)
    questions = conversations(family)
    monkeypatch.setattr(BranchWriter, "_write_alone", None)  # all are written side by side

    for branch in ("base", "tuned"):
        writer = BranchWriter(branch, active.weights.branch(branch), active.tokenizer, GREEDY, lambda: None, copies)
        with torch.inference_mode():
            texts = writer.write(prompts, together=True)
        expected = [family.expected(questions[p.row], branch == "tuned") for p in prompts for _ in range(copies)]
        assert [list(text.tokens) for text in texts] == expected


@pytest.mark.parametrize("model_type", FAMILIES)
def test_losses_see_the_images(model_type, home, tmp_path_factory):
    family, active, prompts = loaded(home, tmp_path_factory.getbasetemp() / "vision", model_type)
    answer = [5, 9, 17, 30]
    rows = [TokenizedRow(p.row, 0, [*p.ids, *answer], [-100] * len(p.ids) + answer, images=p.images) for p in prompts]
    weights = active.weights.branch("tuned")

    with torch.inference_mode():
        alone = [weights.token_losses(row.input_ids, row.labels, row.images) for row in rows]
        together = weights.batch_token_losses(rows)

    for row, one, other in zip(rows, alone, together, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)
        assert one == pytest.approx(family.losses(row), rel=1e-4, abs=1e-4)
