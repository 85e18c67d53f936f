"""Rows that are read together have the losses of rows that are read one by one."""

import random

import pytest
import torch

from loratory.engine.chat.worker.weights import BranchWeights
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.evaluation.worker.answers import batches_of_prompts
from loratory.engine.evaluation.worker.losses import losses_of
from tests.chat.tiny_adapters import attach, load_base, lora, make_adapter


def make_rows(*lengths):
    generator = random.Random(0)
    rows = []
    for number, length in enumerate(lengths):
        ids = [generator.randrange(10, 250) for _ in range(length)]
        rows.append(TokenizedRow(number, 0, ids, [-100] * (length // 2) + ids[length // 2 :]))
    return rows


ROWS = make_rows(40, 7, 40, 23, 2, 11)


@pytest.fixture(scope="module")
def branches(tiny_model_folder, tmp_path_factory):
    folder = make_adapter(tiny_model_folder, tmp_path_factory.mktemp("batched") / "lora", lora())
    holder = load_base(tiny_model_folder)
    return {"base": BranchWeights(holder), "tuned": attach(holder, folder)}


@pytest.mark.parametrize("branch", ["base", "tuned"])
def test_losses_are_those_of_single_rows(branches, branch):
    weights, other = branches[branch], branches["base" if branch == "tuned" else "tuned"]
    with torch.inference_mode():
        alone = [weights.token_losses(row.input_ids, row.labels) for row in ROWS]
        different = other.batch_token_losses(ROWS)
        together = weights.batch_token_losses(ROWS)

    for number, losses in enumerate(alone):
        assert together[number] == pytest.approx(losses, abs=1e-3)
    assert [sum(losses) for losses in different] != pytest.approx([sum(losses) for losses in alone], rel=1e-3)


@pytest.mark.parametrize("failure", ["memory", "other losses"])
def test_where_rows_cannot_be_read_together_they_are_read_one_by_one(branches, failure, monkeypatch):
    def fail(_self, rows):
        if failure == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [[9999.0]] * len(rows)

    with torch.inference_mode():
        alone = [branches["base"].token_losses(row.input_ids, row.labels) for row in ROWS]
        monkeypatch.setattr(BranchWeights, "batch_token_losses", fail)
        assert losses_of(branches["base"], ROWS) == alone


def test_batches_have_rows_of_like_length_and_few_tokens():
    lengths = [row.length for row in ROWS]
    batches = batches_of_prompts(lengths, 9, 60)

    assert sorted(number for batch in batches for number in batch) == list(range(len(ROWS)))
    assert [[lengths[number] for number in batch] for batch in batches] == [[40], [40], [23], [11, 7], [2]]
