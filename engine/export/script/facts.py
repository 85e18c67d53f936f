"""Facts for both forms of a script: the configuration, the model, and the arguments of TRL and PEFT."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loratory.engine.config.objectives import Objective, objective_of
from loratory.engine.config.rules import CHECKPOINTS, MEASUREMENTS, MIN_LEARNING_RATE_SHARE, keeps_best, optimizer_name
from loratory.engine.config.run import RunConfig
from loratory.engine.export.script.model_facts import ModelFacts

NOT_EXPORTED: Mapping[str, str] = {
    "report_to": "a script logs into its output; trackers need accounts and packages of their own",
    "eval_max_new_tokens": "a script logs losses; answers change no result",
    "eval_prompts": "as eval_max_new_tokens",
    "use_liger_kernel": "it changes no result, and a script runs where the package is not installed",
    "train_sampling_strategy": "the rows of an exact script are in the run's order, those of a short one in TRL's",
}
_UNSET = object()
_PEFT_DEFAULTS: Mapping[str, Any] = {"lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False}
TRL_DEFAULTS: Mapping[str, Any] = {
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
    """Facts for both forms."""

    config: RunConfig
    model: ModelFacts
    title: str = "A run"
    output: str = "output"  # folder
    origin: str = "a run in Loratory"  # or "the run 2026…"
    argument: str = "CONFIG"  # of `loratory script`
    versions: str = ""
    results: tuple[str, ...] = ()  # of the run, in sentences

    @property
    def objective(self) -> Objective:
        """The training objective."""
        return objective_of(self.config)

    @property
    def traits(self) -> Any:
        """The PEFT method."""
        return self.config.adapter.traits

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
    def precomputes_reference(self) -> bool:
        """Whether TRL computes the reference before training, if its copy of the adapter is the run's reference."""
        is_same = self.model.warm_start is None or not self.is_quantized
        is_asked = self.objective.precomputes and self.config.training.precompute_ref_log_probs
        return is_asked and is_same and self.traits.starts_as_identity

    @property
    def measures(self) -> bool:
        """Whether rows are held out and evaluated."""
        return self.config.dataset.eval_fraction > 0

    @property
    def measures_base_first(self) -> bool:
        """Whether the evaluation before the first step is of the base model, because the adapter already changes it."""
        starts_elsewhere = self.model.warm_start is not None and not self.objective.has_reference
        return not self.traits.starts_as_identity or starts_elsewhere

    @property
    def patience(self) -> int | None:
        """Evaluations without improvement, after which training stops."""
        return self.config.training.early_stopping_patience if self.measures else None

    @property
    def packages(self) -> str:
        """What `pip install` needs."""
        is_bitsandbytes = self.is_quantized or any(word in self.config.training.optim for word in ("8bit", "paged"))
        sees = " torchvision pillow" if self.model.family is not None else ""  # processors of some families need both
        return f"torch{sees} transformers peft trl datasets" + (" bitsandbytes" if is_bitsandbytes else "")

    @property
    def is_quantized(self) -> bool:
        """Whether the frozen weights are quantized."""
        return self.config.model.quantization != "none"

    @property
    def loaded_dtype(self) -> str:
        """Dtype of the loaded weights; trained weights are held in float32."""
        return "float32" if self.traits.trains_all else self.model.compute

    @property
    def saved_dtype(self) -> str | None:
        """Dtype in which a fully trained model is saved; None to keep it."""
        return self.model.compute if self.traits.trains_all and self.model.compute != "float32" else None

    @property
    def continues_adapter(self) -> bool:
        """Whether a short script starts with the adapter that the run started from."""
        return self.model.warm_start is not None and not self.objective.learns_answers

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
    def processor_arguments(self) -> dict[str, Any]:
        """Arguments of `AutoProcessor.from_pretrained` that do not depend on the model's name."""
        names = self.model.family.processor_arguments if self.model.family is not None else ()
        values = {name: getattr(self.config.vision, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

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
        """Arguments of PEFT's configuration class that are known without the model, without PEFT's defaults."""
        adapter = self.config.adapter
        arguments = self.traits.peft_arguments(adapter)
        if self.traits.adapts_layers:
            arguments["target_modules"] = adapter.target_modules
            names = ["[^.]+_proj"] if adapter.target_modules == "all-linear" else adapter.target_modules
            if self.model.family is not None and not isinstance(names, str):  # PEFT would adapt what sees images too
                within = re.escape(self.model.family.language_model)
                arguments["target_modules"] = rf"{within}\..*\.({'|'.join(names)})"
            if adapter.modules_to_save:
                arguments["modules_to_save"] = adapter.modules_to_save
        return without_defaults(arguments, _PEFT_DEFAULTS)

    @property
    def initial_text(self) -> str | None:
        """Text whose keys and values the learned ones start as; repeated as often as there are virtual tokens."""
        text = self.traits.initial_text(self.config.adapter) if self.model.warm_start is None else None
        return None if text is None else " ".join([text] * self.config.adapter.num_virtual_tokens)

    @property
    def exact_arguments(self) -> dict[str, Any]:
        """Arguments of TRL's configuration in an exact script, without TRL's defaults."""
        training, adapter = self.config.training, self.config.adapter
        checkpointing = training.gradient_checkpointing
        arguments = self._arguments | {
            "activation_checkpointing": checkpointing,
            **({"activation_checkpointing_kwargs": {"use_reentrant": False}} if checkpointing else {}),
            "bf16": self.model.compute == "bfloat16" and not self.traits.trains_in_compute_dtype(adapter),
            "eval_on_start": self.measures,
            "logging_first_step": True,
            "logging_nan_inf_filter": False,
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
        }
        if self.objective.learns_preferences:
            arguments |= self._preference_arguments | {"max_length": training.max_length}
        else:
            arguments |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        if self.objective.precomputes:
            arguments["precompute_ref_log_probs"] = self.precomputes_reference
        return without_defaults(arguments, TRL_DEFAULTS)

    def short_arguments(self, text_column: str | None) -> dict[str, Any]:
        """Return the arguments of TRL's configuration in a short script, without TRL's defaults.

        Args:
            text_column: Name of the column, where rows are plain text.
        """
        training = self.config.training
        arguments = {
            **self._arguments,
            # A row with images cannot be cut anywhere.
            "max_length": training.max_length if self.model.family is None else None,
            "bf16": self.model.compute == "bfloat16",
            "activation_checkpointing": training.gradient_checkpointing,  # given always: TRL's default is its earlier name
        }
        if self.objective.samples_answers:
            arguments |= self._reward_arguments
            del arguments["max_length"]  # of prompts, which TRL does not limit
            return without_defaults(arguments, TRL_DEFAULTS)
        if self.objective.learns_preferences:
            return without_defaults(arguments | self._preference_arguments, TRL_DEFAULTS)
        if text_column is not None:
            arguments["dataset_text_field"] = text_column
        elif self.config.dataset.train_on == "all":
            arguments["completion_only_loss"] = False
        return without_defaults(arguments | {"packing": training.packing}, TRL_DEFAULTS)

    @property
    def _reward_arguments(self) -> dict[str, Any]:
        """The settings of the objective under TRL's names, which counts answers of a step, not prompts."""
        training = self.config.training
        arguments = self._preference_arguments
        arguments["reward_weights"] = [scorer.weight for scorer in arguments.pop("rewards")]
        arguments["gradient_accumulation_steps"] = training.gradient_accumulation_steps * training.num_generations
        if arguments.pop("generation") == "own":
            del arguments["vllm_gpu_memory_utilization"]
        else:
            arguments |= {"use_vllm": True, "vllm_mode": "colocate"}
        if training.epsilon_high is None:
            del arguments["epsilon_high"]
        if self.measures:
            arguments["num_generations_eval"] = 1
            if keeps_best(training):
                arguments |= {"metric_for_best_model": "eval_reward", "greater_is_better": True}
        return arguments

    @property
    def _preference_arguments(self) -> dict[str, Any]:
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
        return arguments

    @property
    def _arguments(self) -> dict[str, Any]:
        training, on_cpu = self.config.training, self.model.on_cpu
        ends_above_zero = training.lr_scheduler_type == "cosine_with_min_lr"
        arguments = {
            "per_device_train_batch_size": training.per_device_train_batch_size,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "num_train_epochs": training.num_train_epochs,
            "max_steps": training.max_steps,
            "learning_rate": training.learning_rate,
            "lr_scheduler_type": training.lr_scheduler_type,
            "lr_scheduler_kwargs": {"min_lr_rate": MIN_LEARNING_RATE_SHARE} if ends_above_zero else None,
            "warmup_steps": training.warmup_steps,
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.max_grad_norm,
            "optim": optimizer_name(training.optim, "cpu" if on_cpu else "cuda"),
            "seed": training.seed,
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


def without_defaults(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments without those that are defaults, with lists for tuples."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in arguments.items()
        if defaults.get(name, _UNSET) != value
    }
