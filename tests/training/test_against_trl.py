"""Preference objectives are TRL's: losses, rewards and gradients of the same batches, step by step."""

import copy

import pytest
from trl import DPOConfig, DPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from loratory.engine.training.methods.registry import method_trainer  # noqa: F401 - before PEFT patches
from tests.training.preference_rows import _Gradients, in_order, make_pairs, make_ratings, split_row, train_with_trl
from tests.training.tiny_training import make_config, make_training

pytestmark = pytest.mark.e2e
ROWS = 120
STEPS = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
}


def train_both(kind, folder, home, rows, as_trl, quantization="none", **settings):
    """Return what both logged, and the first gradients of both; ours, then TRL's."""
    trainer, trl_config, names = kind
    own = {
        name: (value,) if name == "loss_type" and isinstance(value, str) else value for name, value in settings.items()
    }
    training = STEPS | {"objective": names["objective"], "lr_scheduler_type": "constant", "warmup_steps": 0} | own
    base = {"quantization": quantization, "compute_dtype": "float32"}
    gradients = _Gradients()
    setup = make_training(
        make_config(folder, model=base, training=training), rows, home / "ours", callbacks=(gradients,)
    )
    rows_in_order = in_order(setup, rows)
    model = copy.deepcopy(setup.trainer.model)
    # The copy has TRL's forward pass and PEFT's, not ours.
    for module in model.modules():
        vars(module).pop("forward", None)
    model.get_base_model().set_attn_implementation("eager")
    setup.trainer.train()
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    trl_steps, theirs = train_with_trl(
        trainer, trl_config, model, as_trl(rows_in_order), home / "trl",
        per_device_train_batch_size=STEPS["per_device_train_batch_size"], learning_rate=STEPS["learning_rate"],
        lr_scheduler_type="constant", **values,
    )  # fmt: skip
    return setup.steps, trl_steps, gradients.first, theirs


def assert_same(both, metrics, within=1e-4):
    ours, theirs, own_gradients, gradients = both
    assert len(ours) == len(theirs) == ROWS // 4
    for step, entry in zip(ours, theirs, strict=True):
        assert step.loss == pytest.approx(entry["loss"], rel=within, abs=1e-5), step.step
        for name in metrics:
            if name in entry:
                # A margin of zero, but for rounding, may count either way: one pair of four.
                allowed = 0.25 if name == "rewards/accuracies" else within
                assert step.metrics[name] == pytest.approx(entry[name], rel=within, abs=allowed), (step.step, name)
    assert own_gradients.keys() == gradients.keys()
    for name, own in own_gradients.items():
        assert own.sub(gradients[name]).norm() <= within * gradients[name].norm() + 1e-7, name


def pairs_as_trl(pairs):
    sides = [(split_row(pair), split_row(pair.rejected)[1]) for pair in pairs]
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected} for (prompt, chosen), rejected in sides
    ]


def ratings_as_trl(ratings):
    rows = [(*split_row(row), row.desirable) for row in ratings]
    names = ("prompt_ids", "completion_ids", "label", "KL_completion_ids")
    # In each batch of four, every answer also follows the next prompt.
    before = [number - 1 if number % 4 else number + 3 for number in range(len(rows))]
    return [dict(zip(names, (*row, rows[other][1]), strict=True)) for row, other in zip(rows, before, strict=True)]


DPO_NAMES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.5, "loss_type": ("sigmoid", "sft", "apo_zero", "apo_down"), "loss_weights": (1.0, 0.3, 0.5, 2.0)},
        {"loss_type": ("ipo", "hinge", "nca_pair", "bco_pair")},
        {"loss_type": ("exo_pair", "robust", "sppo_hard", "sigmoid_norm"), "label_smoothing": 0.1},
    ],
    ids=lambda settings: "+".join(settings.get("loss_type", ["default"])),
)
def test_dpo_is_that_of_trl(settings, tiny_model_folder, tmp_path):
    kind = (DPOTrainer, DPOConfig, {"objective": "dpo"})
    both = train_both(kind, tiny_model_folder, tmp_path, make_pairs(ROWS), pairs_as_trl, **settings)

    assert_same(both, DPO_NAMES)


def test_dpo_on_a_quantized_base_is_that_of_trl(tiny_model_folder, tmp_path):
    kind = (DPOTrainer, DPOConfig, {"objective": "dpo"})
    both = train_both(kind, tiny_model_folder, tmp_path, make_pairs(ROWS), pairs_as_trl, quantization="nf4")

    assert_same(both, DPO_NAMES, within=0.01)


@pytest.mark.parametrize(
    "settings", [{}, {"loss_type": "apo_zero_unpaired", "desirable_weight": 1.3}], ids=["kto", "apo"]
)
def test_kto_is_that_of_trl(settings, tiny_model_folder, tmp_path):
    kind = (KTOTrainer, KTOConfig, {"objective": "kto"})
    both = train_both(kind, tiny_model_folder, tmp_path, make_ratings(ROWS), ratings_as_trl, **settings)

    assert_same(both, ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "kl"))


def test_orpo_is_that_of_trl(tiny_model_folder, tmp_path):
    kind = (ORPOTrainer, ORPOConfig, {"objective": "orpo"})
    both = train_both(kind, tiny_model_folder, tmp_path, make_pairs(ROWS), pairs_as_trl, beta=0.4)

    assert_same(both, (*DPO_NAMES, "nll_loss", "log_odds_ratio", "log_odds_chosen"))
