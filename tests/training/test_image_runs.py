"""Real workers on rows with images: they resume bit by bit, answer prompts with images, and compare pairs with images."""

import base64
import io
import json
import random

import pytest

from loratory.engine.training.worker import EXIT_FAILED, EXIT_FINISHED
from tests.image_rows import random_image
from tests.tiny_vision import make_tiny_vision_model, member_of
from tests.training.forked_ranks import train_on_two
from tests.training.worker_runs import WORDS, WorkerRuns, data_of_events, losses_of, require_losses_of

pytestmark = pytest.mark.e2e


def _url(draw: random.Random) -> str:
    file = io.BytesIO()
    random_image(draw, 120).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def write_image_rows(path, kind="messages", count=24):
    """Write rows as OpenAI's API takes them, some with two images, some with none; or pairs of answers to them."""
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            parts: list[dict[str, object]] = [
                {"type": "image_url", "image_url": {"url": _url(draw)}} for _ in range(number % 3)
            ]
            user = {"role": "user", "content": [*parts, {"type": "text", "text": f"What is {draw.choice(WORDS)}?"}]}
            answers = [{"role": "assistant", "content": " ".join(draw.choices(WORDS, k=3))} for _ in range(2)]
            row: dict[str, object] = {"messages": [user, answers[0]]}
            if kind == "preference":
                row = {"prompt": [user], "chosen": answers[:1], "rejected": answers[1:]}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def image_runs(home, tmp_path):
    def make(family: str, kind: str = "messages") -> WorkerRuns:
        folder = make_tiny_vision_model(tmp_path / family, member_of(family))
        return WorkerRuns(home, folder, write_image_rows(tmp_path / f"{kind}.jsonl", kind))

    return make


def weights_of(run):
    return (run.folder.adapter / "adapter_model.safetensors").read_bytes()


TRAINING = {"max_steps": 8, "save_steps": 4, "eval_steps": 4, "max_length": 2048, "eval_max_new_tokens": 4}


@pytest.mark.parametrize(
    ("family", "vision"),
    [
        ("idefics3", {}),
        ("qwen2_5_vl", {"projector": "full"}),
        ("qwen3_vl", {"max_pixels": 10_000}),
        ("gemma3", {"tower": "adapter"}),
        ("llava_onevision", {"tower": "full"}),
    ],
)
def test_a_run_with_images_resumes_bit_by_bit(family, vision, workers, image_runs):
    runs = image_runs(family)
    whole, second = (runs.create(vision=vision, training=TRAINING) for _ in range(2))
    assert workers.run(whole.folder.path) == EXIT_FINISHED, (whole.folder.path / "worker.log").read_text()[-3000:]

    workers.run(second.folder.path, "training:step-6=kill")
    assert workers.run(second.folder.path) == EXIT_FINISHED

    assert losses_of(second) == losses_of(whole)
    assert weights_of(second) == weights_of(whole)
    assert not data_of_events(whole, "warning")
    answers = data_of_events(whole, "answers")
    assert answers
    assert "<image" not in "".join(answers[0].prompts)


@pytest.mark.parametrize(
    ("sections", "vision"),
    [
        ({}, {}),
        ({}, {"tower": "full", "projector": "adapter"}),
        ({"run": {"devices": "cpu", "fsdp": "full_shard"}}, {}),
    ],
    ids=["DDP", "DDP, tower trained", "FSDP"],
)
def test_two_processes_train_as_one_although_some_passes_have_no_image(sections, vision, workers, image_runs):
    runs = image_runs("idefics3")
    common = {"model": {"id": str(runs.model), "compute_dtype": "float32"}, "vision": vision}
    one_row = {**TRAINING, "per_device_train_batch_size": 1, "eval_max_new_tokens": 0}
    alone = runs.create(training={**one_row, "gradient_accumulation_steps": 2}, **common)
    assert workers.run(alone.folder.path) == EXIT_FINISHED
    if sections:
        sections = {"run": {**sections["run"], "launcher": "accelerate"}}
    together = runs.create(training={**one_row, "gradient_accumulation_steps": 1}, **common, **sections)

    train_on_two(together)

    require_losses_of(together, alone)


def test_pairs_with_images_are_compared(workers, image_runs):
    run = image_runs("qwen2_vl", "preference").create(training={**TRAINING, "objective": "dpo", "max_steps": 4})

    assert workers.run(run.folder.path) == EXIT_FINISHED, (run.folder.path / "worker.log").read_text()[-3000:]

    assert losses_of(run)[0][1] == pytest.approx(0.693, abs=0.01)
    assert losses_of(run)[-1][1] != losses_of(run)[0][1]


def test_answers_to_images_are_not_sampled_for_rewards(workers, image_runs):
    training = {
        "objective": "grpo",
        "rewards": [{"scorer": "length", "at_most": 20}],
        "max_steps": 2,
        "max_length": 2048,
    }
    run = image_runs("idefics3").create(training=training)

    assert workers.run(run.folder.path) == EXIT_FAILED

    assert "samples answers to prompts of text alone" in data_of_events(run, "failed")[-1].what
