"""What a run optimizes, as far as it is known without torch.

How rows become a loss is the other half, in `loratory.engine.training.objectives`, under the same name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from loratory.engine.config.run import RunConfig
from loratory.engine.config.training import LossName, ObjectiveName, ObjectiveSettings

RowKind = Literal["answers", "pairs", "ratings", "prompts"]


class RowTraits(NamedTuple):
    """The traits of a kind of row; its content and its warnings are a class in `loratory.engine.data.conversation`."""

    content: str  # for people
    noun: str = "row"
    better: str = "good"  # how answers that are preferred to others are called
    worse: str = "bad"
    sequences: int = 1  # that one row becomes; more where a template needs several for one conversation


ROW_KINDS: Mapping[RowKind, RowTraits] = {
    "answers": RowTraits("conversations or text"),
    "pairs": RowTraits("pairs of a chosen and a rejected answer", "pair", "chosen", "rejected", sequences=2),
    "ratings": RowTraits("answers with a label, good or bad", "rated answer"),
    "prompts": RowTraits("prompts without answers", "prompt"),
}
_REWARDS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
# TRL's default for whole models is 1e-6 for DPO, KTO, ORPO and GRPO, and 2e-5 for supervised fine-tuning.
_LOW_RATE = 0.05
# Not of TRL: the share of pairs, of two lengths, whose longer answer has the higher reward.
LONGER_PREFERRED = "rewards/longer_preferred"


@dataclass(frozen=True)
class Objective:
    """The traits of an objective."""

    name: ObjectiveName
    label: str  # for people
    help: str  # one sentence: what it learns
    rows: tuple[RowKind, ...]  # what it learns from, its own first; the first format of a dataset decides
    metrics: tuple[str, ...] = ()  # measured next to the loss, by TRL's names
    losses: tuple[LossName, ...] = ()  # those to choose from, the default first
    adds_losses: bool = False  # several may be chosen
    kl_losses: frozenset[LossName] = frozenset()  # those that need an estimate of the KL
    loop: str = "supervised"  # of `loratory.engine.training.loops`: where its steps come from
    has_reference: bool = False  # compares with the model that training starts from
    shardable: bool = True  # False where the processes would pass different numbers of batches through the model
    trains_prompts: bool = False  # the loss is over the prompt as well
    rate: float = 1.0  # of the learning rate, which is that of supervised fine-tuning times this
    trl: str = "SFT"  # how the names of TRL's trainer and its configuration begin
    settings: tuple[str, ...] = ()  # of `ObjectiveSettings`, that it reads

    @property
    def row_traits(self) -> RowTraits:
        """The traits of its rows."""
        return ROW_KINDS[self.rows[0]]

    @property
    def sequences_per_example(self) -> int:
        """Sequences that pass through the model at once, each up to `max_length`."""
        return self.row_traits.sequences

    @property
    def learns_preferences(self) -> bool:
        """Whether rows say which answer is better, and not only what the answer is."""
        return not {"answers", "prompts"} & {*self.rows}

    @property
    def learns_answers(self) -> bool:
        """Whether the loss is the likelihood of the answers in the rows."""
        return self.rows[0] == "answers"

    @property
    def samples_answers(self) -> bool:
        """Whether the model that is trained answers the prompts of the rows, and rewards say how well."""
        return "prompts" in self.rows

    def compares(self, config: RunConfig) -> bool:
        """Return whether a run computes its reference; a beta of 0 leaves it out."""
        return self.has_reference and config.training.beta > 0

    def steps_per_batch(self, settings: ObjectiveSettings) -> int:
        """Return the optimizer steps on the same rows before the next ones come."""
        return settings.num_iterations if "num_iterations" in self.settings else 1

    def longest_sequence(self, config: RunConfig) -> int:
        """Return the most tokens of a sequence that passes through the model."""
        training = config.training
        return training.max_length + (training.max_completion_length if self.samples_answers else 0)

    @property
    def precomputes(self) -> bool:
        """Whether its reference can be asked about every row before training."""
        return "precompute_ref_log_probs" in self.settings

    def losses_of(self, config: RunConfig) -> tuple[LossName, ...]:
        """Return the chosen losses; the default where none is chosen."""
        return config.training.loss_type or self.losses[:1]

    def summary(self, settings: ObjectiveSettings) -> str:
        """Return the objective with its loss and beta, such as `DPO, sigmoid, beta 0.1`."""
        losses = " + ".join(name for name in settings.loss_type or self.losses[:1] if name != self.name)
        beta = f"beta {settings.beta:g}" if "beta" in self.settings else ""
        return ", ".join(filter(None, (self.label, losses, beta)))


SUPERVISED = Objective("sft", "Supervised (SFT)", "Learns to give the answers in the rows.", ("answers",))
DPO = Objective(
    "dpo",
    "DPO",
    "Learns to prefer the chosen answer of each pair, compared with the model that training starts from.",
    ("pairs",),
    metrics=(*_REWARDS, LONGER_PREFERRED),
    losses=(
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "apo_zero",
        "apo_down",
        "sigmoid_norm",
        "sft",
    ),
    adds_losses=True,
    has_reference=True,
    rate=_LOW_RATE,
    trl="DPO",
    settings=("beta", "loss_type", "loss_weights", "label_smoothing", "disable_dropout", "precompute_ref_log_probs"),
)  # Rafailov et al. 2023, arXiv:2305.18290
ORPO = Objective(
    "orpo",
    "ORPO",
    "Learns the chosen answer of each pair and to prefer it, without a reference model.",
    ("pairs",),
    metrics=(*_REWARDS, "nll_loss", "log_odds_ratio", "log_odds_chosen", LONGER_PREFERRED),
    trains_prompts=True,
    rate=_LOW_RATE,
    trl="ORPO",
    settings=("beta", "disable_dropout"),
)  # Hong et al. 2024, arXiv:2403.07691
KTO = Objective(
    "kto",
    "KTO",
    "Learns from single answers that were rated good or bad.",
    ("ratings",),
    metrics=("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "kl"),
    losses=("kto", "apo_zero_unpaired"),
    kl_losses=frozenset({"kto"}),
    has_reference=True,
    shardable=False,
    rate=_LOW_RATE,
    trl="KTO",
    settings=("beta", "loss_type", "desirable_weight", "undesirable_weight", "disable_dropout"),
)  # Ethayarajh et al. 2024, arXiv:2402.01306
GRPO = Objective(
    "grpo",
    "GRPO",
    "Learns from rewards: it answers each prompt several times, and prefers the answers that scorers rate higher.",
    ("prompts", "answers"),
    metrics=(
        "kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean",
        "sampling/importance_sampling_ratio/mean", "sampling/sampling_logp_difference/mean",
    ),
    losses=("dapo", "grpo", "bnpo", "dr_grpo"),
    loop="rollouts",
    has_reference=True,
    shardable=False,
    rate=_LOW_RATE,
    trl="GRPO",
    settings=(
        "rewards", "beta", "loss_type", "disable_dropout", "num_generations", "max_completion_length", "temperature", "top_p",
        "generation", "vllm_gpu_memory_utilization", "epsilon", "epsilon_high", "num_iterations", "scale_rewards", "mask_truncated_completions",
    ),
)  # fmt: skip  # Shao et al. 2024, arXiv:2402.03300
OBJECTIVES: Mapping[str, Objective] = {objective.name: objective for objective in (SUPERVISED, DPO, KTO, ORPO, GRPO)}


def objectives_for(kind: RowKind) -> tuple[Objective, ...]:
    """Return the objectives that learn from such rows, the usual one first."""
    return tuple(objective for objective in OBJECTIVES.values() if kind in objective.rows)


def objective_of(config: RunConfig) -> Objective:
    """Return the objective of a run."""
    return OBJECTIVES[config.training.objective]


def preference_name(config: RunConfig) -> str:
    """Return what a run learns preferences or rewards by, such as DPO; empty for supervised fine-tuning."""
    objective = objective_of(config)
    return "" if objective.learns_answers else objective.label


# Measured by any objective, in a fixed order.
METRICS: tuple[str, ...] = tuple(dict.fromkeys(name for objective in OBJECTIVES.values() for name in objective.metrics))
