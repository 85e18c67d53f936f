"""How many parameters a fine-tune trains, equal to what PEFT's `print_trainable_parameters` says."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from engine.config.adapter import AdapterConfig
from engine.errors import ConfigError, Problem
from engine.memory.optimizers import TensorShape
from engine.memory.targets import AdapterTargets, find_targets
from engine.models.shape import ModelShape, ModuleShape

LARGEST_RANK = 1024  # the bound of AdapterConfig.r; beyond it a figure would be nonsense


class TrainableCount(NamedTuple):
    """Parameters, not bytes.

    Attributes:
        total: The base model and everything that the adapter adds, as PEFT counts.
        trainable: Of these, what is trained.
        added: What exists beside the base model.
        groups: Shapes of every trained tensor: what may decay, then norms and biases, which transformers' trainer keeps
            from it. An optimizer takes one group after the other.
    """

    total: int
    trainable: int
    added: int
    groups: tuple[tuple[TensorShape, ...], tuple[TensorShape, ...]]

    @property
    def shapes(self) -> tuple[TensorShape, ...]:
        """Of every trained tensor; optimizers treat small ones and vectors apart."""
        return (*self.groups[0], *self.groups[1])

    @property
    def percent(self) -> float:
        return 100.0 * self.trainable / self.total if self.total else 0.0


def count_trainable(shape: ModelShape, adapter: AdapterConfig, targets: AdapterTargets | None = None) -> TrainableCount:
    """Count what this fine-tune trains.

    Args:
        targets: As `find_targets` gives them, where they are known already.

    Raises:
        ConfigError: If `target_modules` match nothing, or the rank is absurd.

    Source: PEFT `get_nb_trainable_parameters`: every named parameter once, tied ones at their first name.
    """
    if adapter.method == "none":
        return TrainableCount(shape.num_parameters, shape.num_parameters, 0, _grouped(shape.modules))
    if adapter.method == "prefix_tuning":
        added = prefix_parameter_count(shape, adapter.num_virtual_tokens)
        learned = ((adapter.num_virtual_tokens, added // adapter.num_virtual_tokens),)
        return TrainableCount(shape.num_parameters + added, added, added, (learned, ()))
    if adapter.method == "lora" and not 1 <= adapter.r <= LARGEST_RANK:
        message = f"{adapter.r:,} is out of range; it must be from 1 to {LARGEST_RANK:,}."
        raise ConfigError([Problem("adapter.r", message)])
    targets = targets or find_targets(shape, adapter)
    ours = tuple(tensor for module in targets.modules for tensor in _adapter_tensors(module, adapter, targets))
    copied, copied_apart = _grouped(targets.saved_in_full, as_copies=True)
    added = sum(map(math.prod, (*ours, *copied, *copied_apart)))
    biases = _trained_biases(shape, adapter, targets)
    groups = ((*ours, *copied), (*copied_apart, *biases))
    return TrainableCount(shape.num_parameters + added, added + sum(map(math.prod, biases)), added, groups)


def _adapter_tensors(module: ModuleShape, adapter: AdapterConfig, targets: AdapterTargets) -> tuple[TensorShape, ...]:
    if adapter.method == "ia3":
        feedforward = module.name in targets.feedforward
        scales = ia3_parameter_count(module.in_features, module.out_features, is_feedforward=feedforward)
        # One row where it scales the input, one column where it scales the output: PEFT `IA3Layer.update_layer`.
        return ((1, scales) if feedforward else (scales, 1),)
    low_rank = ((adapter.r, module.in_features), (module.out_features, adapter.r))
    # DoRA's magnitude has one entry per row of W: https://arxiv.org/abs/2402.09353, equation 5.
    return (*low_rank, (module.out_features,)) if adapter.use_dora else low_rank


def lora_parameter_count(in_features: int, out_features: int, r: int) -> int:
    """Count the trainable parameters LoRA adds to one linear layer.

    Args:
        in_features: Columns of the frozen W, shape (out_features, in_features).
        out_features: Rows of W.
        r: Rank; A is (r, in_features), B is (out_features, r).

    Raises:
        ValueError: If r < 1.

    Source: Hu et al. 2021, section 4.1 (arXiv:2106.09685).
    """
    if r < 1:
        raise ValueError(f"r must be at least 1, got {r}.")
    return r * (in_features + out_features)


def ia3_parameter_count(in_features: int, out_features: int, *, is_feedforward: bool) -> int:
    """Count the entries of IA3's one vector: it rescales the input of feed-forward modules, the output of others.

    Source: Liu et al. 2022, section 3.3 (arXiv:2205.05638); PEFT `IA3Layer.update_layer`.
    """
    return in_features if is_feedforward else out_features


def prefix_parameter_count(shape: ModelShape, num_virtual_tokens: int) -> int:
    """Count the learned keys and values: two per layer, key-value head and virtual token.

    Source: Li and Liang 2021 (arXiv:2101.00190) without the reparametrization; PEFT `PrefixEncoder`, whose
    `token_dim` is head_dim × num_key_value_heads where the model has grouped-query heads.
    """
    return num_virtual_tokens * shape.num_hidden_layers * 2 * shape.num_key_value_heads * shape.head_dim


def _trained_biases(shape: ModelShape, adapter: AdapterConfig, targets: AdapterTargets) -> tuple[TensorShape, ...]:
    """The base model's own biases that train along; they are part of the model already, so they add none.

    Source: PEFT `LoraModel._mark_only_adapters_as_trainable`.
    """
    if adapter.method != "lora" or adapter.bias == "none":
        return ()
    chosen = shape.modules if adapter.bias == "all" else targets.modules
    return tuple((module.bias_parameters,) for module in chosen if module.has_bias)


def _grouped(
    modules: Iterable[ModuleShape], *, as_copies: bool = False
) -> tuple[tuple[TensorShape, ...], tuple[TensorShape, ...]]:
    """Tensors of whole modules: what may decay, then norms and biases.

    Source: `Trainer.get_decay_parameter_names` in transformers/trainer.py.
    """
    decay: list[TensorShape] = []
    apart: list[TensorShape] = []
    for module in modules:
        weights, biases = _tensors(module, as_copy=as_copies)
        (apart if module.kind == "norm" else decay).extend(weights)
        apart.extend(biases)
    return tuple(decay), tuple(apart)


def _tensors(module: ModuleShape, *, as_copy: bool) -> tuple[tuple[TensorShape, ...], tuple[TensorShape, ...]]:
    """Shapes of a module's weights, or of what stands in their place, and of its biases.

    Of a module that is no known layer, what is not told counts as a vector, of which optimizers keep most.

    Args:
        as_copy: A tied module, whose weight is counted elsewhere, becomes a tensor of its own when it is copied.
    """
    total = module.parameters
    if as_copy and module.tied_to is not None:
        total = module.in_features * module.out_features
    if not total:
        return (), ()
    if module.bare_parameters:
        named = module.bare_parameters.items()
        weights = tuple(shape for name, shape in named if not name.endswith("bias"))
        return weights, tuple(shape for name, shape in named if name.endswith("bias"))
    bias = module.bias_parameters if total > module.bias_parameters else 0
    weight = total - bias
    matrix: TensorShape = (module.in_features, module.out_features)
    if module.kind == "norm" or weight != math.prod(matrix):
        matrix = (weight,)
    elif module.kind == "linear":
        matrix = matrix[::-1]
    return (matrix,), ((bias,),) if bias else ()
