"""What learning from rewards takes: the answers that are sampled side by side, and passes over the longest of them."""

import pytest
from transformers import LlamaConfig

from loratory.engine.config.load import config_from_mapping
from loratory.engine.data.contract import RowLengths
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.estimate import estimate_memory

CPU = Device("cpu", 0, "a CPU", 16 << 30, 16 << 30, has_fast_bfloat16=True, cores=2)
GPU = Device("cuda", 0, "a GPU", 16 << 30, 16 << 30, has_fast_bfloat16=True)
SHAPE = inventory_of(
    LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=8192,
    ).to_dict()
)  # fmt: skip
PROMPTS = RowLengths(tokens=(45,) * 16, trained=(45,) * 16, count=16, per_row=1)


def estimate(device=CPU, rows=PROMPTS, share=0.1, **training):
    values = {
        "objective": "grpo", "rewards": [{"scorer": "equals"}], "beta": 0.0, "num_generations": 8,
        "max_completion_length": 32, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_length": 512,
    } | training  # fmt: skip
    adapter = {"r": 16, "lora_dropout": 0.0}
    settings = {
        "model": {"id": "tiny"},
        "adapter": adapter,
        "dataset": {"source": "rows", "eval_fraction": share},
        "training": values,
    }
    return estimate_memory(SHAPE, config_from_mapping(settings), device, rows)


# The last by a run of 80 steps with evaluations and checkpoints, whose prompts have 49 tokens at most.
MEASURED = [(4, 32, 512, 2202), (2, 96, 512, 2015), (4, 16, 96, 1827)]


# Peaks of the process on two cores, by `python -m tests.benchmarks.grpo_step`, in MiB.
@pytest.mark.parametrize(("batch", "tokens", "length", "measured"), MEASURED)
def test_the_bound_covers_what_was_measured(batch, tokens, length, measured):
    bound = estimate(per_device_train_batch_size=batch, max_completion_length=tokens, max_length=length, max_steps=80)

    assert measured << 20 <= bound.needed_bytes


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "cuda"])
def test_more_answers_side_by_side_take_more(device):
    few, many = (estimate(device, num_generations=count).phases_bytes for count in (8, 32))

    cache = 24 * 4 * 2 * 30 * 3 * 64 * (45 + 32) * 2  # of the answers that are more
    assert many["answers"] - few["answers"] > cache


def test_held_out_prompts_are_answered_side_by_side_as_well():
    rows = PROMPTS.model_copy(update={"count": 248})  # of 354, with an eval_fraction of 0.3

    few, many = (estimate(rows=rows, share=share) for share in (0.0, 0.3))

    assert few.phases_bytes["answers"] < many.phases_bytes["answers"]
    # Ten steps of 16 answers, and 106 held-out prompts before and after, of `tests.benchmarks.memory_cpu_grid`.
    run = {"per_device_train_batch_size": 2, "max_steps": 10, "max_length": 1024}
    measured = estimate(rows=rows, share=0.3, **run)
    assert measured.needed_bytes >= 2124 << 20
    assert measured.expected_bytes == pytest.approx(2124 << 20, rel=0.06)


def test_longer_answers_make_longer_passes():
    short, long = (estimate(GPU, max_completion_length=tokens) for tokens in (32, 256))

    assert long.phases_bytes["layer_backward"] > 1.3 * short.phases_bytes["layer_backward"]


def test_answers_share_their_prompt_on_a_cpu_and_what_a_row_answers_is_no_part_of_it():
    rows = RowLengths(tokens=(400,) * 16, trained=(100,) * 16, count=16)
    known = rows.model_copy(update={"longest_prompt": 300})

    few, many = (estimate(rows=known, num_generations=count).phases_bytes["forward"] for count in (2, 8))

    # Six more answers of 32 tokens to each of four prompts, of 300 tokens.
    assert many / few < (300 + 8 * 32) / (300 + 2 * 32) * 1.1
    assert many < estimate(rows=rows).phases_bytes["forward"]


def test_vllm_takes_its_share_of_the_gpu_while_it_answers():
    own, second_copy = (estimate(GPU, generation=name, vllm_gpu_memory_utilization=0.4) for name in ("own", "vllm"))

    assert second_copy.phases_bytes["answers"] > 0.4 * GPU.total_bytes > own.phases_bytes["answers"]


def test_other_objectives_sample_nothing():
    assert "answers" not in estimate(objective="sft").phases_bytes
