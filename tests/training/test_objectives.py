"""An objective decides which sequences a row gives and what its loss is; the trainer does the rest for any of them."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from engine.config.objectives import OBJECTIVES, objective_of
from engine.training.objectives import TRAINING_OBJECTIVES, TrainingObjective
from tests.training.tiny_training import Row, make_config, make_rows, make_training


@dataclasses.dataclass(frozen=True)
class Pair:
    """A preferred answer and another one to the same prompt."""

    chosen: Row
    rejected: Row

    @property
    def input_ids(self):
        return self.chosen.input_ids

    @property
    def labels(self):
        return self.chosen.labels


class PreferChosen(TrainingObjective):
    """-log sigmoid of the margin between two answers, without a reference: the kind of loss that preferences have."""

    def sequences(self, row):
        return (row.chosen, row.rejected)

    def count(self, one):
        return one.sequences // 2

    def summed_loss(self, model, one):
        return -functional.logsigmoid(self.margins(model, one)).sum()

    def margins(self, model, one):
        logits = model(**one.inputs).logits
        log_probabilities = logits.flatten(0, 1)[one.trained.positions].log_softmax(-1)
        chosen = log_probabilities.gather(1, one.trained.targets.unsqueeze(1)).squeeze(1)
        sequence = one.trained.positions // one.inputs["input_ids"].shape[1]
        sums = torch.zeros(one.sequences).index_add(0, sequence, chosen)
        return sums[0::2] - sums[1::2]


def make_pairs(count):
    return [Pair(*rows) for rows in zip(make_rows(count), make_rows(count, seed=1), strict=True)]


def trained_on_pairs(folder, home, **training):
    every_step_has_all_pairs = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 4}
    config = make_config(folder, model={"attn_implementation": "eager"}, training=every_step_has_all_pairs | training)
    built = make_training(config, make_pairs(8), home)
    built.trainer._setup = dataclasses.replace(built.trainer._setup, objective=PreferChosen())
    built.trainer.train()
    return built


def test_each_objective_has_both_halves(tiny_model_folder):
    assert OBJECTIVES.keys() == TRAINING_OBJECTIVES.keys()
    assert objective_of(make_config(tiny_model_folder)).name == "sft"


def test_a_loss_over_pairs_trains_and_is_averaged_over_pairs(tiny_model_folder, tmp_path):
    two_passes = trained_on_pairs(tiny_model_folder, tmp_path / "two")
    one_pass = trained_on_pairs(
        tiny_model_folder, tmp_path / "one", per_device_train_batch_size=8, gradient_accumulation_steps=1
    )

    assert one_pass.losses == pytest.approx(two_passes.losses, rel=1e-4)
    assert two_passes.losses[-1] < two_passes.losses[0]


def test_held_out_pairs_are_measured_by_the_same_loss(tiny_model_folder, tmp_path):
    built = trained_on_pairs(tiny_model_folder, tmp_path)
    built.trainer._rows = dataclasses.replace(built.trainer._rows, held_out=make_pairs(3))

    measured = built.trainer.measure_held_out()

    assert measured.eval_tokens == 3
    assert measured.eval_loss > 0
