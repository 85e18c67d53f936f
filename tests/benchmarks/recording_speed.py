"""How fast an export records what the run answers, with drafts and without: `python -m tests.benchmarks.recording_speed`.

Both take turns in one process, in float32 as exports are verified, on the demo model from the Loratory home (or `--model`)
and a LoRA of rank 16 on all linear layers with small random weights. Without drafts, answers are written token by token.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from engine.chat.contract import AdapterChoice, ChatTarget
from engine.chat.target import plan_load
from engine.chat.worker.answer import end_token_ids, load_chat_tokenizer, render_prompt
from engine.chat.worker.weights import ModelPlace, Weights
from engine.config.run import ModelConfig
from engine.data.conversation import Message
from engine.export.worker.verify import ANSWER_TOKENS, QUESTIONS, draft_answers, record
from engine.hardware.processor import describe_processor
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from tests.chat.tiny_adapters import lora, make_adapter


def main() -> None:
    """Print seconds of both, their ratio, and how many drafts were right."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    base = ModelConfig(id=options.model)
    folder = Path(resolve_model(base, LoratoryHome.from_environment()).location)
    with tempfile.TemporaryDirectory() as scratch:
        config = lora(r=16, lora_alpha=32, target_modules="all-linear")
        adapter = make_adapter(folder, Path(scratch) / "lora", config, scale=0.01)
        target = ChatTarget(model=base, tuned=AdapterChoice(folder=adapter))
        place = ModelPlace(folder, options.model, describe_processor(), torch.float32)
        branch = Weights(plan_load(target), place, lambda _: None).branch("tuned")
        tokenizer = load_chat_tokenizer([adapter], folder, options.model)
    prompts = [render_prompt((Message("user", question),), tokenizer) for question in QUESTIONS]
    end_ids = end_token_ids(tokenizer, branch.holder.model.generation_config)
    seconds: dict[str, list[float]] = {"drafted": [], "token by token": []}
    for _ in range(options.rounds):
        began = time.perf_counter()
        drafts = draft_answers(branch, prompts, end_ids, ANSWER_TOKENS)
        drafted = [record(branch, prompt, end_ids, draft) for prompt, draft in zip(prompts, drafts, strict=True)]
        between = time.perf_counter()
        written = [record(branch, prompt, end_ids, ()) for prompt in prompts]
        seconds["drafted"].append(between - began)
        seconds["token by token"].append(time.perf_counter() - between)
        right = sum(one.answer == draft for one, draft in zip(drafted, drafts, strict=True))
        same = sum(one.answer == other.answer for one, other in zip(drafted, written, strict=True))
        print(f"{right} of {len(prompts)} drafts right, {same} of {len(prompts)} answers as token by token")
    for name, values in seconds.items():
        print(f"{name}: {min(values):.1f} / {statistics.median(values):.1f} / {max(values):.1f} s (min, median, max)")
    ratios = [slow / quick for quick, slow in zip(seconds["drafted"], seconds["token by token"], strict=True)]
    print(f"drafts are {statistics.median(ratios):.2f} times as fast (min {min(ratios):.2f}, max {max(ratios):.2f})")


if __name__ == "__main__":
    main()
