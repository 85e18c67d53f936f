"""How the training goes: length, batches, learning rate, memory savings, evaluation and saving."""

from typing import Literal

from pydantic import field_validator

from engine.config.section import Section, setting

Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
    "sgd",
]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_min_lr", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
]
SamplingStrategy = Literal["group_by_length", "random"]
TrackerName = Literal["tensorboard", "trackio", "wandb"]

MAX_STEPS_BOUND = 10_000_000


class TrainingConfig(Section):
    """The training loop; names are those of transformers and TRL."""

    num_train_epochs: float = setting(
        3.0,
        label="Epochs",
        help="How often the model sees every row. One to three is usual; more memorises small datasets.",
        gt=0,
        le=10_000,
    )
    max_steps: int = setting(
        -1,
        label="Steps at most",
        help="Ends after so many optimizer steps, whatever the epochs say. -1 leaves it to the epochs.",
        ge=-1,
        le=MAX_STEPS_BOUND,
    )
    per_device_train_batch_size: int = setting(
        2,
        label="Batch per device",
        help="Rows that pass through the model at once. Memory grows with it; speed too, until the device is full.",
        ge=1,
        le=4096,
    )
    gradient_accumulation_steps: int = setting(
        4,
        label="Accumulate",
        help="Batches whose gradients are added up before each optimizer step. From 2 on, the gradients of what is trained "
        "wait in memory meanwhile: little for an adapter, much for full tuning. No further batch costs any.",
        ge=1,
        le=65_536,
    )
    learning_rate: float = setting(
        2e-4,
        label="Learning rate",
        help="Size of a step. 1e-4 to 3e-4 suits LoRA, 1e-5 to 5e-5 full tuning, 3e-3 and more IA3 and prefix tuning.",
        gt=0,
        le=1.0,
    )
    lr_scheduler_type: Scheduler = setting(
        "cosine", label="Schedule", help="How the learning rate falls after the warm-up."
    )
    warmup_steps: float = setting(
        0.03,
        label="Warm-up",
        help="Steps over which the learning rate rises from zero; below 1 it is a share of all steps.",
        ge=0,
        le=MAX_STEPS_BOUND,
    )
    weight_decay: float = setting(0.0, label="Weight decay", help="Pulls trained weights towards zero.", ge=0, le=1)
    max_grad_norm: float = setting(
        1.0,
        label="Clip gradients at",
        help="Longer gradients are scaled down to this norm. 0 switches clipping off.",
        ge=0,
        le=1000,
    )
    max_length: int = setting(
        1024,
        label="Longest row, in tokens",
        help="Longer rows are cut at the end. Memory grows with the longest row; the Data tab shows what is cut.",
        ge=8,
        le=1_048_576,
    )
    packing: bool = setting(
        False,
        label="Packing",
        help="Joins short rows into full-length ones, with attention kept apart. Faster when rows vary in length.",
    )
    train_sampling_strategy: SamplingStrategy = setting(
        "group_by_length",
        label="Order of rows",
        help="Where rows are padded, group_by_length puts rows of like length into one step, so that little is computed "
        "for padding; random does not. Joined and packed rows have no padding and always come at random.",
    )
    gradient_checkpointing: bool = setting(
        False,
        label="Gradient checkpointing",
        help="Computes activations again in the backward pass instead of keeping them: much less memory, a third slower.",
    )
    use_liger_kernel: bool = setting(
        False,
        label="Liger kernels",
        help="Fused kernels for norms, rotary embeddings and gated layers on CUDA, from the package liger-kernel. Where "
        "they cannot be used, the run says so and takes the model's own.",
    )
    torch_compile: bool = setting(
        False,
        label="Compile layers",
        help="Lets torch.compile fuse what lies between the matrix products, on CUDA. Takes a minute before the first "
        "step, so that it pays in long runs; where it cannot be used, the run says so.",
    )
    optim: Optimizer = setting(
        "adamw_torch",
        label="Optimizer",
        help="adamw_8bit and the paged ones hold their state in fewer or movable bytes and need a CUDA device.",
    )
    seed: int = setting(
        42, label="Seed", help="Fixes the order of rows, the held-out part and the initial adapter.", ge=0, le=2**32 - 1
    )
    logging_steps: int = setting(
        1, label="Log every", help="Steps between two points of the loss curve.", ge=1, le=1_000_000
    )
    eval_steps: int | None = setting(
        None,
        label="Measure held-out loss every",
        help="Steps between two measurements. Empty measures before the first step and about ten times on the way.",
        ge=1,
        le=MAX_STEPS_BOUND,
    )
    save_steps: int | None = setting(
        None,
        label="Checkpoint every",
        help="Steps between two checkpoints. Empty saves about five times on the way and at the end.",
        ge=1,
        le=MAX_STEPS_BOUND,
    )
    save_total_limit: int = setting(
        2,
        label="Checkpoints kept",
        help="Older checkpoints are deleted beyond this number.",
        ge=1,
        le=1000,
    )
    early_stopping_patience: int | None = setting(
        None,
        label="Stop early after",
        help="Ends the run when the held-out loss has not improved for so many measurements. Empty never does.",
        ge=1,
        le=10_000,
    )
    load_best_model_at_end: bool = setting(
        False,
        label="Keep the best",
        help="Ends with the weights of the lowest held-out loss instead of the last ones. Stopping early always does.",
    )
    report_to: tuple[TrackerName, ...] = setting(
        (),
        label="Trackers",
        help="Where else the curves go. tensorboard and trackio keep them on this machine; wandb sends them, with all "
        "settings, to Weights & Biases. Each needs its own package (the `trackers` extra).",
    )

    @field_validator("max_steps")
    @classmethod
    def _refuse_no_steps(cls, steps: int) -> int:
        # The libraries disagree on what 0 means: no step, one step, or the epochs.
        if steps == 0:
            raise ValueError("0 steps would train nothing; give 1 or more, or -1 to leave it to the epochs.")
        return steps
