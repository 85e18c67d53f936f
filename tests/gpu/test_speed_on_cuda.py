"""Trained tokens per second on CUDA, ours against the plain script with Liger's kernels, on the demo model and real shapes."""

import importlib.util
import time

import pytest
import torch

from engine.models.prepared import DEMO_MODEL_ID
from tests.gpu.cuda_training import auto_dtype, cuda_placement, the_gpu
from tests.training.tiny_training import make_config, make_rows, make_training

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

STEPS, WARM_UP, ROWS_PER_STEP = 30, 5, 8
HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None
LOSS_TOLERANCE = 0.02  # rows of random tokens in bfloat16, by two implementations
LEAST_RATIO = 0.7  # of the plain script's speed: generous, since other programs may use the GPU as well
SHAPE_GIB = 40  # of a GPU that holds a step of the plain script on a real shape, all logits included


class Clock:
    """Time since the warm-up, with nothing left in the GPU's queue."""

    def __init__(self):
        self.began = 0.0

    def after(self, step):
        if step == WARM_UP:
            torch.cuda.synchronize()
            self.began = time.perf_counter()

    def seconds(self):
        torch.cuda.synchronize()
        return time.perf_counter() - self.began


@pytest.fixture(params=["demo", "0.5B", "1.5B"])
def folder(request, demo_home, in_shape):
    if request.param == "demo":
        return demo_home.models / DEMO_MODEL_ID
    if the_gpu().total_bytes < SHAPE_GIB * 2**30:
        pytest.skip(f"a step of {request.param} by the plain script needs a GPU with {SHAPE_GIB} GiB")
    return in_shape(request.param)


def train_ours(folder, rows, tmp_path):
    sections = auto_dtype(
        adapter={"r": 16, "lora_alpha": 32},
        training={
            "max_steps": STEPS,
            "per_device_train_batch_size": ROWS_PER_STEP,
            "gradient_accumulation_steps": 1,
            "learning_rate": 2e-4,
            "max_length": 512,
        },
    )
    training = make_training(make_config(folder, **sections), rows, tmp_path / "ours", placement=cuda_placement())
    clock = Clock()
    training.trainer.hooks.on_logged = lambda step: (training.steps.append(step), clock.after(step.step))  # type: ignore[assignment]
    training.trainer.train()
    trained = training.steps[-1].trained_tokens - training.steps[WARM_UP - 1].trained_tokens
    order = [
        row
        for _, step in zip(range(STEPS), training.trainer._planner.steps(0), strict=False)
        for row in step_rows(step)
    ]
    return trained / clock.seconds(), training.losses, order


def step_rows(step):
    return [row for one in step.passes for row in one.rows]


def train_plain(folder, rows, tmp_path):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    clock, losses = Clock(), []

    class Plain(SFTTrainer):
        def log(self, logs, start_time=None):
            super().log(logs, start_time)
            if "loss" in logs:
                losses.append(logs["loss"])
                clock.after(len(losses))

    torch.manual_seed(42)
    trainer = Plain(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        args=SFTConfig(
            output_dir=str(tmp_path / "plain"),
            max_steps=STEPS,
            per_device_train_batch_size=ROWS_PER_STEP,
            learning_rate=2e-4,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            bf16=True,
            activation_checkpointing=False,
            use_liger_kernel=HAS_LIGER,
            max_length=512,
            save_strategy="no",
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    counted = rows[WARM_UP * ROWS_PER_STEP : STEPS * ROWS_PER_STEP]
    trained = sum(label != -100 for row in counted for label in row.labels[1:])
    return trained / clock.seconds(), losses


def test_trained_tokens_a_second_next_to_the_plain_script(folder, tmp_path, show):
    rows = make_rows(STEPS * ROWS_PER_STEP, longest=500)

    ours, losses, order = train_ours(folder, rows, tmp_path)
    torch.cuda.empty_cache()
    plain, plain_losses = train_plain(folder, [rows[number] for number in order], tmp_path)

    show(
        gpu=torch.cuda.get_device_name(0),
        ours_trained_tokens_per_second=round(ours),
        plain_trained_tokens_per_second=round(plain),
        ratio=round(ours / plain, 3),
        plain_has_liger=HAS_LIGER,
    )
    assert losses == pytest.approx(plain_losses, rel=LOSS_TOLERANCE)
    assert ours > LEAST_RATIO * plain
