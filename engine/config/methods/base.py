"""What a PEFT method is, as far as it is known without PEFT: settings, traits, and the words for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from loratory.engine.section import Section, setting

if TYPE_CHECKING:
    from loratory.engine.config.run import AdapterConfig, RunConfig

VirtualTokens = Literal["none", "keys_and_values", "inputs"]

FOUR_BIT = ("nf4", "fp4")
QUANTIZED = frozenset({*FOUR_BIT, "int8"})


class CrossFieldRule(NamedTuple):
    """A refusal that involves several fields; `explain` yields the message, or nothing where the pair is fine."""

    field: str  # where the problem is shown
    explain: Callable[[RunConfig], Iterator[str]]


def cross_field_rule(field: str) -> Callable[[Callable[[RunConfig], Iterator[str]]], CrossFieldRule]:
    """Make a function a rule whose problem is shown at a field."""
    return lambda explain: CrossFieldRule(field, explain)


class ComparisonRow(NamedTuple):
    """One row of the table of methods: what is set together with the method."""

    name: str
    quantization: str
    gradient_checkpointing: bool | None = None  # None leaves it as it is


class PeftMethod:
    """One PEFT method. A subclass states its traits and overrides what differs."""

    name: ClassVar[str]  # value of `adapter.method`
    label: ClassVar[str]  # on the page and in messages
    help: ClassVar[str]  # one or two short sentences: what it does, how to choose
    four_bit_label: ClassVar[str] = ""  # on a base of four bits, where people have a name for that
    four_bit_help: ClassVar[str] = ""
    peft_type: ClassVar[str] = ""  # in adapter_config.json; empty where PEFT is not used
    peft_class: ClassVar[str] = ""  # PEFT's configuration class
    fields: ClassVar[tuple[str, ...]] = ()  # settings of the adapter section that it reads, in the order of the form
    advanced: ClassVar[tuple[str, ...]] = ()  # those of `fields` that few people change
    defaults: ClassVar[Mapping[str, Any]] = {}  # of shared settings, where its own differ from those of the fields
    # Where a person gives none. LoRA's is that of QLoRA's authors for models of up to 13B (arXiv:2305.14314, table 9).
    learning_rate: ClassVar[float] = 2e-4
    same_on_warm_start: ClassVar[tuple[str, ...]] = ()  # fields that must be equal for weights to mean the same
    trains_all: ClassVar[bool] = False  # the whole model, without an adapter
    virtual_tokens: ClassVar[VirtualTokens] = "none"  # learned positions before every sequence: as what they come
    starts_as_identity: ClassVar[bool] = True  # before the first step the adapted model computes what its base computes
    quantization: ClassVar[frozenset[str]] = QUANTIZED  # formats of frozen weights that it can be trained on
    layer_kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d"})  # kinds of modules that it can adapt
    checkpointing_conflict: ClassVar[str] = ""  # why gradient checkpointing cannot be used, as a clause; empty: it can
    why_not_mergeable: ClassVar[str] = ""  # why PEFT cannot merge it into the base, as a clause; empty: it can
    card: ClassVar[Mapping[str, str]] = {}  # rows of the model card; values name settings in braces
    tensor_marks: ClassVar[tuple[str, ...]] = ()  # parts of names that distinguish its tensors from those of the base
    shardable: ClassVar[bool] = False  # FSDP2 can divide what it trains among processes
    has_regularizer: ClassVar[bool] = False  # a regularizer is part of the loss
    rules: ClassVar[tuple[CrossFieldRule, ...]] = ()  # settings that cannot work together where it is chosen

    @property
    def adapts_layers(self) -> bool:
        """Whether it adapts layers and reads target modules."""
        return "target_modules" in self.fields

    @property
    def mergeable(self) -> bool:
        """Whether PEFT can merge the adapter into the base's weights."""
        return not self.why_not_mergeable

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether it can be combined with gradient checkpointing."""
        return not self.checkpointing_conflict

    def has_quick_layers(self, adapter: AdapterConfig) -> bool:  # noqa: ARG002
        """Return whether `loratory.engine.training.ops` has layers of its own for it."""
        return False

    @property
    def comparison_rows(self) -> tuple[ComparisonRow, ...]:
        """Its rows in the table of methods."""
        return (ComparisonRow(self.label, "none", None if self.gradient_checkpointing else False),)

    def display_name(self, quantization: str) -> str:
        """Return the name that people use for the method on a base of this quantization."""
        if self.four_bit_label and quantization in FOUR_BIT:
            return self.four_bit_label
        return self.label if quantization == "none" else f"{self.label} on {quantization}"

    def summary(self, adapter: AdapterConfig) -> str:
        """Return the settings that distinguish two runs of this method, such as `r 16`."""
        if "r" in self.fields:
            return f"r {adapter.r}"
        if self.virtual_tokens == "none":
            return ""
        return f"{adapter.num_virtual_tokens} virtual token{'s' if adapter.num_virtual_tokens != 1 else ''}"

    def card_rows(self, adapter: AdapterConfig) -> list[tuple[str, str]]:
        """Return rows of the model card: a name and a value each."""
        rows = [(title, form.format_map(dict(adapter))) for title, form in self.card.items()]
        if self.adapts_layers:
            targets = adapter.target_modules
            rows.append(("Layers", targets if isinstance(targets, str) else ", ".join(targets)))
        return rows

    def peft_arguments(self, adapter: AdapterConfig) -> dict[str, Any]:
        """Return the arguments of PEFT's configuration class, except for the modules that it chooses.

        The trainer and the exported script use the same ones.
        """
        chosen_modules = ("target_modules", "modules_to_save", "feedforward_modules")
        return {name: getattr(adapter, name) for name in self.fields if name not in chosen_modules}

    def initial_text(self, adapter: AdapterConfig) -> str | None:  # noqa: ARG002
        """Return the text that initializes the prefix; None if there is none."""
        return None

    def count_virtual_tokens(self, adapter: AdapterConfig) -> int:
        """Return how many learned positions come before every sequence."""
        return adapter.num_virtual_tokens if self.virtual_tokens != "none" else 0

    def count_virtual_inputs(self, adapter: AdapterConfig) -> int:
        """Return how many learned embeddings come before those of every sequence."""
        return self.count_virtual_tokens(adapter) if self.virtual_tokens == "inputs" else 0

    def layer_problem(self, adapter: AdapterConfig, in_features: int, out_features: int) -> tuple[str, str] | None:  # noqa: ARG002
        """Return setting and reason where PEFT cannot adapt a layer of this size, or None."""
        return None

    def has_dropout(self, adapter: AdapterConfig) -> bool:
        """Return whether training draws random numbers in the adapter."""
        return any(getattr(adapter, name) for name in self.fields if name.endswith("dropout"))

    def trains_in_compute_dtype(self, adapter: AdapterConfig) -> bool:  # noqa: ARG002
        """Return whether everything it trains is multiplied in the dtype of the frozen weights, without autocast."""
        return False


class FullFineTuning(PeftMethod):
    """Full fine-tuning: every weight of the model is trained, without an adapter."""

    name = "none"
    label = "Full fine-tuning"
    help = "Full fine-tuning changes every weight. It needs by far the most memory, and a small learning rate."
    trains_all = True
    shardable = True
    learning_rate = 5e-5  # the default of transformers; Tülu's 2e-5 (arXiv:2306.04751) learns less: docs/design/log.md
    quantization = frozenset()


class SharedSettings(Section):
    """Settings of more than one method; each keeps the name that PEFT gives it."""

    method: str = setting("lora", "Method")  # `AdapterConfig` has the choices
    r: int = setting(16, "Rank", ge=1, le=1024)
    """Capacity of the adapter; memory and size grow in proportion. 8 to 64 serves most tasks; VeRA needs 256 and more."""
    target_modules: tuple[str, ...] | str = setting("all-linear", "Layers that get an adapter", max_length=200)
    """all-linear takes every linear layer except the output head. A list takes modules by the end of their name; a single string is matched against full names as a regular expression."""
    modules_to_save: tuple[str, ...] = setting((), "Modules trained in full", max_length=50)
    """Modules trained and saved whole with the adapter, for example embed_tokens and lm_head after adding tokens."""
    num_virtual_tokens: int = setting(20, "Virtual tokens", ge=1, le=4096)
    """How many learned positions come before every sequence. They take room from the context."""
