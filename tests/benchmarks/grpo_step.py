"""Seconds and memory of a step of GRPO, ours against TRL's `GRPOTrainer`: `python -m tests.benchmarks.grpo_step`.

Both answer the same prompts of the demo model in bfloat16, or what this processor multiplies faster, with LoRA on all linear
layers, and get the same reward. Answers do not end early, so a step is the same work on both sides. Each trial is a process
of its own, in turn. TRL takes all answers in one pass (its fastest) or in passes of four (`--trl-pass 4`).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.training_trial import ALPHA, RANK, REPOSITORY, _environment, faster_dtype

PROMPTS, COPIES, TOKENS = 4, 8, 32
WARM_UP = 1
QUESTIONS = [
    f"{start} {topic}?"
    for topic in ("the tides", "a rainbow", "the seasons", "an echo")
    for start in (
        "What causes",
        "Explain to a child in two sentences",
        "Who first described",
        "Why should I care about",
    )
]


def reward(text: str) -> float:
    return min(1.0, text.count("e") / 20)


def train_ours(steps: int) -> dict[str, float]:
    """Train with our loop, built as the worker does."""
    from transformers import AutoTokenizer

    from loratory.engine.config.load import config_from_mapping
    from loratory.engine.data.conversation import Message
    from loratory.engine.data.render.tokenize import PromptFacts, TokenizedRow, prompt_ids
    from loratory.engine.models.source import ModelSource
    from loratory.engine.scoring.base import Verdict
    from loratory.engine.training.assembly import assemble
    from loratory.engine.training.batching.steps import TrainerRows
    from loratory.engine.training.build import add_adapter, load_model, training_arguments
    from loratory.engine.training.callbacks import TrainerHooks
    from loratory.engine.training.loops import rollouts
    from loratory.engine.training.placement import choose_placement, choose_precision
    from loratory.engine.training.worker import keep_freed_memory

    keep_freed_memory()

    class Session:
        def __init__(self, _scorers): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def score(self, rows, _between):
            return [(Verdict(reward(row.answer)),) for row in rows]

    setattr(rollouts, "ScoringSession", Session)  # noqa: B010 - a stand-in
    config = config_from_mapping(
        {
            "model": {"id": str(model_folder())},
            "adapter": {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0},
            "dataset": {"source": "rows"},
            "training": {
                "objective": "grpo", "rewards": [{"scorer": "length", "unit": "characters"}], "beta": 0.0, "num_generations": COPIES,
                "max_completion_length": TOKENS, "max_steps": steps, "per_device_train_batch_size": PROMPTS,
                "gradient_accumulation_steps": 1, "learning_rate": 1e-5, "max_length": 512,
            },
            "run": {"devices": "cpu"},
        }
    )  # fmt: skip
    source = ModelSource(config.model.id, "demo")
    tokenizer = AutoTokenizer.from_pretrained(config.model.id)
    rows = []
    for number, question in enumerate(QUESTIONS):
        ids = prompt_ids([Message("user", question)], tokenizer)
        rows.append(TokenizedRow(number, 0, ids, [-100] * len(ids), prompt=PromptFacts(question, {})))
    placement = choose_placement(config)
    precision = choose_precision(config, placement.device)
    model = add_adapter(load_model(source, config, precision, placement), config, source)
    assembly = assemble(model, config, precision, placement, rows, tokenizer.pad_token_id)
    clock, speeds = Clock(), []

    loop = rollouts.RolloutLoop(
        model=model,
        args=training_arguments(config.training, Path("/dev/shm/grpo-step"), precision, placement),
        tokenizer=tokenizer,
        rows=TrainerRows(rows, [len(row.input_ids) for row in rows], []),
        setup=assembly.setup,
        hooks=TrainerHooks(
            on_logged=lambda _: clock.lap(),
            on_rollout=lambda data: speeds.append(data.tokens / data.generation_seconds),
        ),
    )
    loop._end_ids = frozenset()
    clock.start()
    loop.train()
    return {"tokens_per_second": statistics.median(speeds[WARM_UP:])} | clock.measured()


def train_trl(steps: int, rows_per_pass: int) -> dict[str, float]:
    """Train with TRL's trainer, as its documentation uses it, with the model in the faster precision."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    clock, speeds = Clock(), []

    class Timed(GRPOTrainer):
        def _generate(self, prompts):
            began = time.perf_counter()
            result = super()._generate(prompts)
            speeds.append(sum(map(len, result[1])) / (time.perf_counter() - began))
            return result

        def log(self, logs, start_time=None):
            super().log(logs, start_time)
            if "loss" in logs:
                clock.lap()

    folder, dtype = str(model_folder()), faster_dtype()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = PROMPTS * COPIES
    args = GRPOConfig(
        output_dir="/dev/shm/grpo-step", report_to="none", use_cpu=True, bf16=dtype == "bfloat16", disable_tqdm=True,
        gradient_checkpointing=False, save_strategy="no", logging_steps=1, max_steps=steps, learning_rate=1e-5,
        per_device_train_batch_size=rows_per_pass, gradient_accumulation_steps=answers // rows_per_pass,
        num_generations=COPIES, max_completion_length=TOKENS,
        generation_kwargs={"min_new_tokens": TOKENS},
    )  # fmt: skip
    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in QUESTIONS]),
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [reward(turns[0]["content"]) for turns in completions],
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    clock.start()
    trainer.train()
    return {"tokens_per_second": statistics.median(speeds[WARM_UP:])} | clock.measured()


def model_folder() -> Path:
    return Path(os.environ["LORATORY_TEST_HOME"]) / "models" / "smollm2-135m-instruct"


class Clock:
    """Wall and processor time of each step."""

    def __init__(self) -> None:
        self.start()
        self.steps: list[tuple[float, float]] = []

    def start(self) -> None:
        self.began = (time.perf_counter(), time.process_time())

    def lap(self) -> None:
        self.steps.append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))
        self.start()

    def measured(self) -> dict[str, float]:
        """Return the median step after the warm-up, and the peak of the process."""
        seconds, cpu_seconds = (statistics.median(times) for times in zip(*self.steps[WARM_UP:], strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak}


def trial(who: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure in a process of its own."""
    command = ["--who", who, "--steps", str(options.steps), "--trl-pass", str(options.trl_pass)]
    process = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.grpo_step", *command],
        cwd=REPOSITORY, env=_environment("ours" if who == "ours" else "plain"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if process.returncode:
        raise SystemExit(process.stderr[-3000:])
    result = json.loads(process.stdout.splitlines()[-1])
    print(who, {name: round(value, 2) for name, value in result.items()}, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--who", choices=["ours", "trl"], help="measure one in this process")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl-pass", type=int, default=PROMPTS * COPIES)
    options = parser.parse_args()
    if options.who:
        result = train_ours(options.steps) if options.who == "ours" else train_trl(options.steps, options.trl_pass)
        print(json.dumps(result))
        return
    rounds = [(trial("ours", options), trial("trl", options)) for _ in range(options.rounds)]
    for name in ("seconds", "cpu_seconds", "peak_mib", "tokens_per_second"):
        ours, trl = (statistics.median(pair[side][name] for pair in rounds) for side in (0, 1))
        print(f"{name:<18} ours {ours:9.2f}   TRL {trl:9.2f}   TRL / ours {trl / ours:.2f}")


if __name__ == "__main__":
    main()
