"""Full fine-tuning: every weight of the model is trained, without an adapter."""

from engine.config.methods.base import PeftMethod


class FullFineTuning(PeftMethod):
    """No adapter at all."""

    name = "none"
    label = "Full fine-tuning"
    help = "Full fine-tuning changes every weight. It needs by far the most memory, and a small learning rate."
    trains_all = True
    quantization = frozenset()
