"""Held-out rows with images: side by side and alone, answers and losses are the same, and those of transformers."""

import base64
import json

import pytest
import torch
from peft import LoraConfig

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.worker.answer import render_prompt
from loratory.engine.config.results import SamplingConfig
from loratory.engine.data.conversation import IMAGE_MARK, Message
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.render.images import images_of
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.evaluation.worker.answers import BranchWriter
from loratory.engine.training.answers import Prompt
from tests.chat.lively_vision import QUESTION, TARGETS, TOKENS, family_in, load, png
from tests.chat.tiny_adapters import write_trained_run
from tests.evaluation.conftest import evaluate, order_of
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
    for prompt in prompts:
        text = prompt.text(active.tokenizer)
        assert [f"[image {number}]" in text for number in (1, 2, 3)] == [
            number <= len(prompt.images) for number in (1, 2, 3)
        ]
        assert len(text) < 400
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

    for row, first, second in zip(rows, alone, together, strict=True):
        assert first == pytest.approx(second, rel=1e-4, abs=1e-4)
        assert first == pytest.approx(family.losses(row), rel=1e-4, abs=1e-4)


def test_an_evaluation_measures_and_answers_rows_and_test_sets_with_images(home, tmp_path_factory, tmp_path):
    family = family_in(tmp_path_factory.getbasetemp() / "vision", "qwen2_vl")
    urls = [f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}" for picture in family.pictures]
    rows = [
        {"messages": [{"role": "user", "content": f"<image>which is blue, {n}?"}, {"role": "assistant", "content": f"two cats {n}"}],
         "images": [urls[n % 3]]}
        for n in range(20)
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    run = write_trained_run(
        tmp_path / "run", family.folder, adapter, model={"compute_dtype": "float32"},
        dataset={"source": str(file), "eval_fraction": 0.2}, training={"max_length": 1024},
        evaluation={"tests": [{"source": str(file), "max_rows": 4, "max_new_tokens": 6, "scorers": [{"scorer": "length"}]}]},
    )  # fmt: skip
    order = order_of(run, answered_rows=2)

    result = evaluate(home, order)

    store = MediaStore(home.media)
    assert result.losses["base"].loss != pytest.approx(result.losses["tuned"].loss, rel=1e-3)
    digests = {ref.digest for ref in family.refs}
    assert len(result.answered_rows) == 2
    for row in result.answered_rows:
        assert {*row.images} < digests
        assert store.find(row.images[0]) is not None
        assert "which is blue" in row.prompt
        assert "<|image_pad|>" not in row.prompt
    (test,) = result.tests
    samples = [prompt for prompts in test.prompts.values() for prompt in prompts]
    assert len(samples) == 2 * 4
    assert all({*prompt.images} < digests for prompt in samples)
    assert IMAGE_MARK not in "".join(prompt.prompt for prompt in samples)
