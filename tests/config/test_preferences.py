"""Settings of preference tuning that cannot work together are refused with the fix."""

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.objectives import OBJECTIVES
from loratory.engine.errors import ConfigError

CONFLICTS = {
    "packing": ({"objective": "dpo", "packing": True}, "switch packing off"),
    "a loss of kto": ({"objective": "dpo", "loss_type": ["kto"]}, "DPO has no loss kto"),
    "two losses of kto": ({"objective": "kto", "loss_type": ["kto", "apo_zero_unpaired"]}, "KTO takes one loss"),
    "a loss twice": ({"objective": "dpo", "loss_type": ["ipo", "ipo"]}, "each loss once"),
    "a loss of orpo": ({"objective": "orpo", "loss_type": ["sigmoid"]}, "leave this empty"),
    "weights": ({"objective": "dpo", "loss_type": ["sigmoid", "sft"], "loss_weights": [1]}, "1 weights for 2 losses"),
    "exo_pair": ({"objective": "dpo", "loss_type": ["exo_pair"]}, "set it to 0.001"),
    "precomputed kto": ({"objective": "kto", "precompute_ref_log_probs": True}, "switch it off"),
}


def make(training, **sections):
    return config_from_mapping(
        {"model": {"id": "a/b"}, "dataset": {"source": "rows"}, "training": training, **sections}
    )


@pytest.mark.parametrize(("training", "message"), CONFLICTS.values(), ids=CONFLICTS)
def test_what_cannot_work_together_is_refused(training, message):
    with pytest.raises(ConfigError, match=message):
        make(training)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_reference_needs_an_adapter_on_each_gpu(objective):
    with pytest.raises(ConfigError, match="full fine-tuning has none"):
        make({"objective": objective}, adapter={"method": "none"})
    run = {"launcher": "accelerate", "fsdp": "full_shard", "devices": [0, 1]}
    if objective == "kto":
        with pytest.raises(ConfigError, match="processes of a sharded run have unequally many"):
            make({"objective": objective}, run=run)
    else:
        make({"objective": objective}, run=run)
    make({"objective": "orpo"}, adapter={"method": "none"})


def test_every_loss_is_one_of_an_objective():
    for objective in OBJECTIVES.values():
        for loss in objective.losses:
            smoothing = 0.001 if loss == "exo_pair" else 0.0
            rewards = [{"scorer": "equals"}] if objective.samples_answers else []
            training = {
                "objective": objective.name,
                "loss_type": [loss],
                "label_smoothing": smoothing,
                "rewards": rewards,
            }
            config = make(training)
            assert objective.losses_of(config) == (loss,)
