"""Settings of the training: length, batches, learning rate, memory savings, evaluation and saving."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from loratory.engine.scoring.registry import AnyScorer
from loratory.engine.section import Magnitude, Section, setting

ObjectiveName = Literal["sft", "dpo", "kto", "orpo", "grpo"]
LossName = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "sigmoid_norm", "sft", "kto", "apo_zero_unpaired", "dapo", "grpo", "bnpo", "dr_grpo",
]  # fmt: skip


class ObjectiveSettings(Section):
    """What is optimized. Names are those of TRL's DPOConfig, KTOConfig, ORPOConfig and GRPOConfig; sft ignores all but the first."""

    objective: ObjectiveName = setting("sft", "Objective")
    """sft learns answers; dpo and orpo prefer one answer of a pair; kto learns from ratings; grpo from rewards for answers that it samples."""
    beta: Magnitude = setting(0.1, "Beta", ge=0, le=100)
    """Higher stays closer to the reference model (dpo, kto, grpo), or weighs the odds ratio more (orpo). 0 has no reference, for grpo only."""
    loss_type: tuple[LossName, ...] = setting((), "Loss", max_length=4)
    """Empty takes sigmoid for dpo, kto for kto and dapo for grpo. Several of dpo are added; sft among them keeps the chosen answers likely."""
    loss_weights: tuple[Annotated[float, Field(gt=0, le=100)], ...] = setting((), "Loss weights", max_length=4)
    """One factor for each preference loss. Empty weighs each with 1."""
    label_smoothing: Magnitude = setting(0.0, "Label smoothing", ge=0, lt=0.5)
    """Share of pairs whose preference may be wrong, for robust and exo_pair. 0.1 suits noisy votes, 0.001 suits exo_pair."""
    desirable_weight: Magnitude = setting(1.0, "Desirable weight", gt=0, le=100)
    """Factor of good answers in kto. Raise it where there are fewer of them than of bad ones."""
    undesirable_weight: Magnitude = setting(1.0, "Undesirable weight", gt=0, le=100)
    """Factor of bad answers in kto. Raise it where there are fewer of them than of good ones."""
    disable_dropout: bool = setting(True, "Disable dropout")
    """Trains without dropout, so model and reference differ by nothing but the adapter."""
    precompute_ref_log_probs: bool = setting(False, "Precompute reference")
    """Asks the reference model once before training instead of at every step: faster from the second epoch on."""
    rewards: tuple[AnyScorer, ...] = setting((), "Rewards", max_length=20)
    """Scorers of the answers that grpo samples; their weighted scores add up to the reward."""
    num_generations: int = setting(8, "Answers per prompt", ge=2, le=256)
    """Answers that grpo samples for each prompt and compares with each other. More of them give a steadier step and take longer."""
    max_completion_length: int = setting(512, "Max answer length", ge=1, le=65_536)
    """Longer answers of grpo are cut off, in tokens. They come on top of max_length, which limits the prompt."""
    temperature: Magnitude = setting(1.0, "Temperature", gt=0, le=5)
    """Of the answers that grpo samples: lower makes them more alike, and alike answers teach nothing."""
    top_p: float = setting(1.0, "Top p", gt=0, le=1)
    """grpo samples among the likeliest tokens with this share of the probability. 1 samples among all."""
    generation: Literal["own", "vllm"] = setting("own", "Generation")
    """What writes the answers of grpo: own is the model that is trained; vllm is a second copy of it in vLLM, which answers many prompts at once sooner, on CUDA with LoRA."""
    vllm_gpu_memory_utilization: float = setting(0.3, "Memory of vLLM", gt=0, lt=1)
    """Share of the GPU's memory that vLLM reserves while it writes answers."""
    epsilon: Magnitude = setting(0.2, "Clip range", gt=0, lt=1)
    """How far a token's probability may move from that at sampling before grpo stops pushing it. It matters from the second iteration on."""
    epsilon_high: Magnitude | None = setting(None, "Upper clip range", gt=0, le=10)
    """The same for rising probabilities; 0.28 lets rare tokens rise more. Empty takes epsilon."""
    num_iterations: int = setting(1, "Iterations", ge=1, le=64)
    """Optimizer steps of grpo on the same answers before new ones are sampled. More save time and make a step less exact."""
    scale_rewards: Literal["group", "batch", "none"] = setting("group", "Scale rewards")
    """Divides the rewards of grpo by their spread: among the answers to one prompt, among all of a step, or not at all."""
    mask_truncated_completions: bool = setting(False, "Ignore cut answers")
    """Leaves answers that were cut off at max_completion_length out of the loss of grpo."""

    @property
    def uses_vllm(self) -> bool:
        """Whether a second copy of the model answers."""
        return self.generation == "vllm"


Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor", "sgd"
]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_min_lr", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
]
SamplingStrategy = Literal["group_by_length", "random"]
TrackerName = Literal["tensorboard", "trackio", "wandb"]

MAX_STEPS_BOUND = 10_000_000


class TrainingConfig(ObjectiveSettings):
    """The training loop; names are those of transformers and TRL."""

    num_train_epochs: float = setting(3.0, "Epochs", gt=0, le=10_000)
    """Passes over the training set. One to three is usual; more memorises small datasets."""
    max_steps: int = setting(-1, "Max steps", ge=-1, le=MAX_STEPS_BOUND)
    """Stops after this many optimizer steps. -1 uses the epochs."""
    per_device_train_batch_size: int = setting(2, "Batch size", ge=1, le=4096)
    """Rows per device and forward pass; answers per pass for grpo. Larger batches need more memory."""
    gradient_accumulation_steps: int = setting(4, "Gradient accumulation", ge=1, le=65_536)
    """Batches per optimizer step: more average more rows without more memory. A step of grpo takes batch size × this many prompts."""
    learning_rate: Magnitude = setting(2e-4, "Learning rate", gt=0, le=1.0)
    """1e-4 to 3e-4 suits LoRA, 1e-5 to 5e-5 full fine-tuning, 3e-3 and more IA3 and prefix tuning. dpo, kto and orpo need a twentieth."""
    lr_scheduler_type: Scheduler = setting("cosine", "Scheduler")
    """How the learning rate changes after the warm-up."""
    warmup_steps: Magnitude = setting(0.03, "Warm-up", ge=0, le=MAX_STEPS_BOUND)
    """Steps over which the learning rate rises from zero. Below 1 it is a share of all steps."""
    weight_decay: Magnitude = setting(0.0, "Weight decay", ge=0, le=1)
    """Pulls trained weights towards zero."""
    max_grad_norm: Magnitude = setting(1.0, "Max gradient norm", ge=0, le=1000)
    """Scales larger gradients down to this norm. 0 turns clipping off."""
    max_length: int = setting(1024, "Max length", ge=8, le=1_048_576)
    """Longer rows are truncated, in tokens. Memory grows with it; the Data tab shows what is lost."""
    packing: bool = setting(False, "Packing")
    """Joins short rows into full-length ones without attention between them. Faster when lengths vary."""
    train_sampling_strategy: SamplingStrategy = setting("group_by_length", "Row order")
    """group_by_length puts rows of similar length into one batch, with less padding. Joined and packed rows are always random."""
    gradient_checkpointing: bool = setting(False, "Gradient checkpointing")
    """Recomputes activations in the backward pass: much less memory, a third slower."""
    use_liger_kernel: bool = setting(True, "Liger kernels")
    """Fused CUDA kernels for norms, rotary embeddings and gated layers, where the `cuda` extra is installed. Off uses the model's own."""
    torch_compile: bool = setting(False, "Compile layers")
    """Lets torch.compile fuse operations on CUDA. It takes a minute before the first step: for long runs."""
    optim: Optimizer = setting("adamw_torch", "Optimizer")
    """adamw_8bit and the paged optimizers use less GPU memory and need CUDA."""
    seed: int = setting(42, "Seed", ge=0, le=2**32 - 1)
    """Fixes the order of rows, the held-out set and the initial adapter."""
    logging_steps: int = setting(1, "Log every", ge=1, le=1_000_000)
    """Steps between two points of the loss curve."""
    eval_steps: int | None = setting(None, "Evaluate every", ge=1, le=MAX_STEPS_BOUND)
    """Steps between two evaluations. Empty evaluates before the first step and about ten times in all."""
    eval_max_new_tokens: int | None = setting(None, "Answers at evaluations, tokens", ge=0, le=1024)
    """Three held-out prompts are answered, in a few seconds each time. Empty takes 64 tokens, and none for large models; 0 takes none."""
    eval_prompts: str = setting("", "Prompts to answer", max_length=6000)
    """At most three, with | between them: numbers of held-out rows, or prompts of your own. Empty takes three typical rows."""
    save_steps: int | None = setting(None, "Checkpoint every", ge=1, le=MAX_STEPS_BOUND)
    """Steps between two checkpoints. Empty saves about five times and at the end."""
    save_total_limit: int = setting(2, "Max checkpoints", ge=1, le=1000)
    """Older checkpoints are deleted."""
    early_stopping_patience: int | None = setting(None, "Early stopping patience", ge=1, le=10_000)
    """Stops after this many evaluations without a lower held-out loss. Empty never stops early."""
    load_best_model_at_end: bool = setting(False, "Keep best")
    """Ends with the weights of the lowest held-out loss. Early stopping always does."""
    report_to: tuple[TrackerName, ...] = setting((), "Trackers")
    """tensorboard and trackio stay on this machine; wandb sends curves and settings to Weights & Biases. Each needs the `trackers` extra."""

    @field_validator("max_steps")
    @classmethod
    def _refuse_no_steps(cls, steps: int) -> int:
        # The libraries disagree on what 0 means: no step, one step, or the epochs.
        if steps == 0:
            raise ValueError("0 steps would train nothing; give 1 or more, or -1 to leave it to the epochs.")
        return steps
