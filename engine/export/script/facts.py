"""The facts that a script is generated from: a configuration, the data, the model and the run.

The functions of a script use `facts`, an example, which `engine.export.script.specialize` replaces by the facts of a
configuration. Training settings that no form of a script passes on are in `NOT_EXPORTED`, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config.methods.base import Source
from engine.config.methods.ia3 import FEEDFORWARD_ENDINGS
from engine.config.objectives import Objective, objective_of
from engine.config.rules import CHECKPOINTS, MEASUREMENTS, MIN_LEARNING_RATE_SHARE, keeps_best, optimizer_name
from engine.config.run import DatasetConfig, ModelConfig, RunConfig
from engine.data.formats.turns import ROLES
from engine.export.script.model_facts import ModelFacts, TokenizerFacts
from engine.export.script.row_facts import DataFacts, RunRows

NOT_EXPORTED: Mapping[str, str] = {
    "report_to": "a script logs into log_history.json; trackers need accounts and packages of their own",
    "use_liger_kernel": "it changes no result, and a script runs where the package is not installed",
    "train_sampling_strategy": "the order of rows follows from whether rows were padded, which the facts hold",
}
_UNSET = object()
_PEFT_DEFAULTS: Mapping[str, Any] = {"lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False}
_TRL_DEFAULTS: Mapping[str, Any] = {
    "max_steps": -1,
    "lr_scheduler_kwargs": None,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "fp16": False,
    "use_cpu": False,
    "report_to": "none",
    "save_strategy": "steps",
    "torch_compile": False,
    "eval_on_start": False,
    "packing": False,
    "seed": 42,
}


@dataclass(frozen=True)
class ScriptFacts:
    """All facts of a script."""

    config: RunConfig
    data: DataFacts
    model: ModelFacts
    title: str = "A run"
    output: str = "output"
    origin: str = "a configuration"  # or "the run 2026…"
    versions: str = ""
    run_rows: RunRows = RunRows()  # noqa: RUF009 - immutable
    results: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()  # how the script differs from the run, in sentences

    @property
    def data_location(self) -> str | list[str]:
        """The dataset's id on the Hub, or its files."""
        return self.config.dataset.source if self.data.kind == "hub" else list(self.data.files)

    @property
    def hub_arguments(self) -> dict[str, Any]:
        """Arguments of `load_dataset` besides the dataset's id."""
        dataset = self.config.dataset
        arguments = {"name": dataset.subset, "split": dataset.split, "revision": dataset.revision}
        return {name: value for name, value in arguments.items() if value}

    @property
    def objective(self) -> Objective:
        """The training objective."""
        return objective_of(self.config)

    @property
    def learns_preferences(self) -> bool:
        """Whether the objective trains on preferences."""
        return self.objective.learns_preferences

    @property
    def learns_pairs(self) -> bool:
        """Whether rows have two answers each."""
        return "pairs" in self.objective.rows

    @property
    def copies_adapter(self) -> bool:
        """Whether TRL's trainer copies the adapter, as a reference."""
        return self.objective.has_reference

    @property
    def estimates_kl(self) -> bool:
        """Whether the loss needs a KL that is estimated from mismatched prompts and answers."""
        return not self.objective.kl_losses.isdisjoint(self.objective.losses_of(self.config))

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights of the losses, by name."""
        losses = self.objective.losses_of(self.config)
        return dict(zip(losses, self.config.training.loss_weights or (1.0,) * len(losses), strict=True))

    @property
    def averages_rows(self) -> bool:
        """Whether a loss is averaged over rows by `compute_loss`."""
        return self.learns_preferences and not self.objective.trains_prompts

    @property
    def averages_tokens(self) -> bool:
        """Whether one of several losses is averaged over tokens, as that of supervised fine-tuning is."""
        return "sft" in self.loss_weights

    @property
    def precomputes_reference(self) -> bool:
        """Whether TRL computes the reference before training, if its copy of the adapter is the run's reference."""
        is_same = self.model.warm_start is None or not self.is_quantized
        is_asked = self.objective.precomputes and self.config.training.precompute_ref_log_probs
        return is_asked and is_same and self.config.adapter.traits.starts_as_identity

    @property
    def train_on(self) -> str:
        """Which turns of a conversation are trained; with preferences, the compared answers."""
        return "completion" if self.learns_preferences else self.config.dataset.train_on

    @property
    def trains_several_answers(self) -> bool:
        """Whether several answers of one row may be trained."""
        data, train_on = self.data, self.train_on
        if data.most_answers < 2 or train_on == "last_assistant":
            return False
        if train_on == "completion" and not data.marks_completion:
            # Two answers to one question: one after the other, or with a system turn between them.
            return data.has_repeated_roles or data.has_later_system
        return True

    @property
    def measures(self) -> bool:
        """Whether rows are held out and evaluated."""
        return self.config.dataset.eval_fraction > 0

    @property
    def measures_base_first(self) -> bool:
        """Whether the evaluation before the first step is of the base model, because the adapter already changes it."""
        starts_elsewhere = self.model.warm_start is not None and not self.objective.has_reference
        return not self.config.adapter.traits.starts_as_identity or starts_elsewhere

    @property
    def patience(self) -> int | None:
        """Evaluations without improvement, after which training stops."""
        return self.config.training.early_stopping_patience if self.measures else None

    @property
    def method_callbacks(self) -> list[str]:
        """The callback of transformers that the method needs, as source."""
        callback = self.config.adapter.traits.script_callback
        return [Source(f"{callback}()")] if callback else []

    @property
    def feedforward_endings(self) -> list[str]:
        """Ends of the names of feed-forward modules."""
        return list(self.config.adapter.feedforward_modules or FEEDFORWARD_ENDINGS)

    @property
    def is_quantized(self) -> bool:
        """Whether the frozen weights are quantized."""
        return self.config.model.quantization != "none"

    @property
    def loaded_dtype(self) -> str:
        """Dtype of the loaded weights; trained weights are held in float32."""
        return "float32" if self.config.adapter.traits.trains_all else self.model.compute

    @property
    def saved_dtype(self) -> str | None:
        """Dtype in which a fully trained model is saved; None to keep it."""
        return self.model.compute if self.config.adapter.traits.trains_all and self.model.compute != "float32" else None

    @property
    def quantization_arguments(self) -> dict[str, Any]:
        """Arguments of `BitsAndBytesConfig`."""
        if self.config.model.quantization == "int8":
            return {"load_in_8bit": True}
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.config.model.quantization,
            "bnb_4bit_use_double_quant": self.config.model.double_quant,
            "bnb_4bit_compute_dtype": self.model.compute,
        }

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that do not depend on the model's name."""
        arguments: dict[str, Any] = {}
        if self.config.model.attn_implementation != "auto":
            arguments["attn_implementation"] = self.config.model.attn_implementation
        if self.config.run.spread_over > 1:
            arguments["device_map"] = "balanced"
        elif self.is_quantized or not self.model.on_cpu:
            arguments["device_map"] = {"": "cpu" if self.model.on_cpu else 0}
        return arguments

    @property
    def peft_arguments(self) -> dict[str, Any]:
        """Arguments of PEFT's configuration class, without those that are PEFT's defaults."""
        arguments = self.config.adapter.traits.script_arguments(self.config.adapter)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in arguments.items()
            if _PEFT_DEFAULTS.get(name, _UNSET) != value
        }

    @property
    def initial_text(self) -> str | None:
        """Text whose keys and values the learned ones start as."""
        return self.config.adapter.traits.initial_text(self.config.adapter)

    @property
    def short_peft_arguments(self) -> dict[str, Any]:
        """The same for the short form, without arguments that depend on the loaded model."""
        arguments = {
            name: value
            for name, value in self.peft_arguments.items()
            if not isinstance(value, Source) or value == "MODEL"  # which both forms of a script have
        }
        return {"task_type": "CAUSAL_LM", **arguments}

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of `SFTConfig` for the faithful form, without TRL's defaults."""
        adapter, checkpoints = self.config.adapter, self.config.training.gradient_checkpointing
        arguments = self._trainer_arguments | {
            "activation_checkpointing": checkpoints,
            **({"activation_checkpointing_kwargs": {"use_reentrant": False}} if checkpoints else {}),
            "bf16": self.model.compute == "bfloat16" and not adapter.traits.trains_in_compute_dtype(adapter),
            "eval_on_start": self.measures,
            "logging_first_step": True,
            "logging_nan_inf_filter": False,
            "disable_tqdm": True,
        }
        return _without_defaults(arguments)

    @property
    def short_trainer_arguments(self) -> dict[str, Any]:
        """Arguments of `SFTConfig` for the short form, without TRL's defaults."""
        training = self.config.training
        arguments = {
            "per_device_train_batch_size": training.per_device_train_batch_size,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            **self._trainer_arguments,
            "max_length": training.max_length,
            "packing": training.packing,
            "bf16": self.model.compute == "bfloat16",
            "seed": training.seed,
            "activation_checkpointing": training.gradient_checkpointing,  # given always: TRL's default is its earlier name
        }
        if not self.data.has_turns:
            arguments["dataset_text_field"] = self.data.columns["text"]
        elif self.config.dataset.train_on == "all":
            arguments["completion_only_loss"] = False
        return _without_defaults(arguments)

    @property
    def trl_trainer(self) -> Any:
        """The class of TRL that trains with the objective, as source."""
        return Source(f"{self.objective.trl}Trainer")

    @property
    def trl_config(self) -> Any:
        """The class of its arguments, as source."""
        return Source(f"{self.objective.trl}Config")

    @property
    def objective_arguments(self) -> dict[str, Any]:
        """Arguments of TRL's configuration that its objective alone has, in the faithful form; its rows are tokenized."""
        if not self.learns_preferences:
            return {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        arguments = self._preference_settings | {"max_length": self.config.training.max_length}
        if self.objective.precomputes:
            arguments["precompute_ref_log_probs"] = self.precomputes_reference
        return arguments

    @property
    def preference_arguments(self) -> dict[str, Any]:
        """Arguments of TRL's configuration for an objective of preferences, in the short form."""
        arguments = self.short_trainer_arguments | self._preference_settings
        for name in ("packing", "completion_only_loss", "dataset_text_field"):
            arguments.pop(name, None)
        return arguments

    @property
    def _preference_settings(self) -> dict[str, Any]:
        """The settings of the objective, under TRL's names."""
        training, objective = self.config.training, self.objective
        arguments = {name: getattr(training, name) for name in objective.settings}
        if objective.losses:
            losses = list(objective.losses_of(self.config))
            arguments["loss_type"] = losses if objective.adds_losses else losses[0]
        if not arguments.get("loss_weights"):
            arguments.pop("loss_weights", None)
        if objective.kl_losses:  # the KL is estimated from neighbours
            arguments["train_sampling_strategy"] = "sequential"
        return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}

    @property
    def _trainer_arguments(self) -> dict[str, Any]:
        training, on_cpu = self.config.training, self.model.on_cpu
        ends_above_zero = training.lr_scheduler_type == "cosine_with_min_lr"
        arguments = {
            "num_train_epochs": training.num_train_epochs,
            "max_steps": training.max_steps,
            "learning_rate": training.learning_rate,
            "lr_scheduler_type": training.lr_scheduler_type,
            "lr_scheduler_kwargs": {"min_lr_rate": MIN_LEARNING_RATE_SHARE} if ends_above_zero else None,
            "warmup_steps": training.warmup_steps,
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.max_grad_norm,
            "optim": optimizer_name(training.optim, "cpu" if on_cpu else "cuda"),
            "fp16": self.model.compute == "float16",
            "use_cpu": on_cpu,
            "torch_compile": training.torch_compile and not on_cpu,
            "logging_steps": training.logging_steps,
            "report_to": "none",
            "save_strategy": "steps",
            # A fraction of all steps if not set.
            "save_steps": training.save_steps or 1 / CHECKPOINTS,
            "save_total_limit": training.save_total_limit,
        }
        if self.measures:
            arguments |= {"eval_strategy": "steps", "eval_steps": training.eval_steps or 1 / MEASUREMENTS}
        if self.measures and keeps_best(training):
            arguments |= {
                "load_best_model_at_end": True,
                "metric_for_best_model": "eval_loss",
                "greater_is_better": False,
            }
            arguments["save_steps"] = arguments["eval_steps"]  # transformers can only restore what it saved
        return arguments


def _without_defaults(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if _TRL_DEFAULTS.get(name, _UNSET) != value}


facts = ScriptFacts(
    config=RunConfig(model=ModelConfig(id="someone/model"), dataset=DatasetConfig(source="rows.jsonl")),
    data=DataFacts(
        kind="json_lines",
        format="messages",
        columns={"messages": "messages"},
        files=("rows.jsonl",),
        roles={"user": ROLES["user"], "assistant": ROLES["assistant"]},
        turn_columns={"messages"},
        most_answers=1,
    ),
    model=ModelFacts(location="someone/model", compute="float32", on_cpu=True, tokenizer=TokenizerFacts()),
)
