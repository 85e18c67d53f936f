"""Supervised fine-tuning: next-token loss over the answers of a conversation."""

from engine.config.objectives.base import Objective


class SupervisedFineTuning(Objective):
    """Cross-entropy of trained tokens, averaged over a step."""

    name = "sft"
    label = "Supervised fine-tuning"
    help = "Trains on given answers. Start with it; preferences between answers come after."
    columns = ("conversation",)
    views = ("perplexity", "answers", "scores")
