"""What the vision demo learns to see: `python -m tests.benchmarks.easy_vqa --wheel easy_vqa-1.0-py3-none-any.whl`.

The rows are those of PyPI's package easy-vqa (`pip download easy-vqa`): a shape of 64 × 64 pixels, a question, an answer of one
word. First tower and projector of the demo learn as full weights with LoRA on its language model, then LoRA alone, from there.
A text-only model, the demo without eyes, learns the same questions for as many steps. Printed are the losses, minutes, and the
share of held-out questions answered exactly, with 95 % intervals (Wilson 1927); exits with 1 unless the intervals are apart.
"""

import argparse
import collections
import json
import math
import random
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.run import RunConfig
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.passes.prepare import TokenizedRows, prepare_dataset
from loratory.engine.data.render.tokenize import IGNORED_LABEL
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.demo_vision import prepare_demo_vision
from loratory.engine.models.prepared import prepare_demo
from loratory.engine.models.source import ModelSource
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.history.events import StepData
from loratory.engine.training.assembly import assemble
from loratory.engine.training.batching.images import ImageInputs
from loratory.engine.training.batching.steps import TrainerRows
from loratory.engine.training.build import add_adapter, load_model, training_arguments
from loratory.engine.training.callbacks import TrainerHooks
from loratory.engine.training.loops.supervised import SupervisedLoop
from loratory.engine.training.methods.registry import method_trainer
from loratory.engine.training.placement import choose_placement, choose_precision

_YES_NO = ("yes", "no")
_ANSWER_TOKENS = 6
_AT_ONCE = 50  # questions answered in one batch


@dataclass
class Trained:
    """A model after its training, and what it learns its next rows with."""

    model: Any
    tokenizer: Any
    images: ImageInputs | None


class Quiz:
    """Rows of the wheel as data files in a folder, and trainings on them.

    Args:
        folder: Temporary: the wheel is unpacked into it, and trained models are written there.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._home = LoratoryHome.from_environment()
        with zipfile.ZipFile(options.wheel) as wheel:
            wheel.extractall(folder)
        data = folder / "easy_vqa" / "data"
        train = json.loads((data / "train" / "questions.json").read_text())
        self._held_out = json.loads((data / "test" / "questions.json").read_text())
        random.Random(1).shuffle(self._held_out)
        self._held_out = self._held_out[: options.questions]
        self._train = even_mix(train, options.rows)
        for split, rows in (("train", self._train), ("test", self._held_out)):
            write_rows(data / split / "with_images.jsonl", rows, has_images=True)
            write_rows(data / split / "text_only.jsonl", rows, has_images=False)

    def config(self, model: Path, split: str, steps: int, *, has_images: bool, part: str = "frozen") -> RunConfig:
        """Return the configuration of a training; `part` is what happens to tower and projector."""
        options = self._options
        name = "with_images" if has_images else "text_only"
        return config_from_mapping(
            {
                "model": {"id": str(model), "compute_dtype": options.dtype},
                "adapter": {"r": 16, "lora_alpha": 32},
                "vision": {"tower": part, "projector": part},
                "dataset": {
                    "source": str(self._folder / "easy_vqa" / "data" / split / f"{name}.jsonl"),
                    "eval_fraction": 0.0,
                },
                "training": {
                    "max_steps": steps,
                    "per_device_train_batch_size": options.rows_per_step,
                    "gradient_accumulation_steps": 1,
                    "learning_rate": options.full_rate if part == "full" else options.lora_rate,
                    "max_length": 128,
                },
            }
        )

    def train(self, title: str, base: Path, steps: int, *, has_images: bool, part: str = "frozen") -> Trained:
        """Train as `loratory.engine.training.session` does, without its files; print the curve and minutes."""
        config = self.config(base, "train", steps, has_images=has_images, part=part)
        began = (time.perf_counter(), time.process_time())
        source = ModelSource(str(base), base.name)
        tokenizer, _ = load_tokenizer(source, config.vision)
        rows = self._rows(config, tokenizer)
        placement = choose_placement(config)
        precision = choose_precision(config, placement.device)
        torch.manual_seed(config.training.seed)
        model = add_adapter(load_model(source, config, precision, placement), config, source)
        method_trainer(config.adapter.method).initialize(model, config.adapter, source)
        images = ImageInputs(tokenizer.image_text, MediaStore(self._home.media)) if has_images else None
        assembly = assemble(model, config, precision, placement, rows, tokenizer.pad_token_id, images)
        records: list[StepData] = []
        trainer = SupervisedLoop(
            model=model,
            args=training_arguments(config.training, self._folder / "out", precision, placement),
            tokenizer=tokenizer,
            rows=TrainerRows(rows, rows.lengths(), []),
            setup=assembly.setup,
            hooks=TrainerHooks(on_logged=records.append),
        )
        trainer.train()
        minutes = [
            (now - then) / 60 for now, then in zip((time.perf_counter(), time.process_time()), began, strict=True)
        ]
        print(
            f"{title}: {steps} steps in {minutes[0]:.1f} minutes ({minutes[1]:.1f} of a processor), {precision.compute_name}"
        )
        print("  " + curve([step.loss for step in records]), flush=True)
        return Trained(model, tokenizer, images)

    def merged(self, trained: Trained, base: Path) -> Path:
        """Write a trained model, merged, as the base of the next training."""
        target = self._folder / "merged"
        trained.model.merge_and_unload().save_pretrained(target)
        for file in base.iterdir():
            if not (target / file.name).exists() and file.suffix != ".safetensors":
                (target / file.name).write_bytes(file.read_bytes())
        return target

    def score(self, title: str, trained: Trained) -> tuple[float, float]:
        """Answer the held-out questions; print accuracy by kind and examples, and return the interval of all."""
        has_images = trained.images is not None
        config = self.config(self._folder, "test", 1, has_images=has_images)
        rows = self._rows(config, trained.tokenizer)
        answers = answer(trained, rows)
        expected = [row[1] for row in self._held_out]
        assert len(answers) == len(expected)
        low, high = interval(sum(map(str.__eq__, answers, expected)), len(expected))
        kinds: dict[str, list[bool]] = collections.defaultdict(list)
        for reply, truth in zip(answers, expected, strict=True):
            kinds["yes/no" if truth in _YES_NO else "word"].append(reply == truth)
        shares = ", ".join(f"{kind} {sum(right) / len(right):.1%} of {len(right)}" for kind, right in kinds.items())
        share = sum(map(str.__eq__, answers, expected)) / len(expected)
        print(f"{title}: {share:.1%} [{low:.1%}, {high:.1%}] of {len(expected)}; {shares}")
        for (question, truth, image), reply in list(zip(self._held_out, answers, strict=True))[:8]:
            print(f"    image {image}: {question} → {reply} ({truth})", flush=True)
        return low, high

    def _rows(self, config: RunConfig, tokenizer: Any) -> TokenizedRows:
        return prepare_dataset(
            config.dataset, seed=0, max_length=config.training.max_length, tokenizer=tokenizer, home=self._home
        ).train


def even_mix(rows: list[list[Any]], count: int) -> list[list[Any]]:
    """Return rows of which half ask for yes or no, in random order."""
    generator = random.Random(0)
    generator.shuffle(rows)
    kinds = [[row for row in rows if (row[1] in _YES_NO) == is_yes_no] for is_yes_no in (True, False)]
    chosen = [row for kind in kinds for row in kind[: count // 2]]
    generator.shuffle(chosen)
    return chosen


def write_rows(file: Path, rows: list[list[Any]], *, has_images: bool) -> None:
    """Write rows of question, answer and number of the image as chats; an empty system turn keeps the template's away."""
    lines = []
    for question, truth, image in rows:
        turns = (("system", ""), ("user", question), ("assistant", truth))
        row: dict[str, Any] = {"messages": [{"role": role, "content": text} for role, text in turns]}
        lines.append(json.dumps(row | ({"image": f"images/{image}.png"} if has_images else {})))
    file.write_text("\n".join(lines) + "\n")


@torch.inference_mode()
def answer(trained: Trained, rows: TokenizedRows) -> list[str]:
    """Return the greedy answer to the prompt of each row, in order."""
    model, tokenizer = trained.model.eval(), trained.tokenizer
    model.get_base_model().set_attn_implementation("sdpa")  # the trainer's takes no mask of padded prompts
    answers = []
    for start in range(0, len(rows), _AT_ONCE):
        batch = [rows[number] for number in range(start, min(start + _AT_ONCE, len(rows)))]
        prompts = [row.input_ids[: _first_trained(row.labels)] for row in batch]
        longest = max(map(len, prompts))
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        pixels = trained.images.tensors([row.images for row in batch], ids) if trained.images else {}
        # Parts trained as full weights are float32 among weights of bfloat16.
        with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                **pixels,
                max_new_tokens=_ANSWER_TOKENS,
                do_sample=False,
                pad_token_id=pad,
            )
        answers += [text.strip() for text in tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)]
    return answers


def _first_trained(labels: list[int]) -> int:
    return next(number for number, label in enumerate(labels) if label != IGNORED_LABEL)


def interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share: Wilson, Probable inference, 1927."""
    z, share = 1.96, right / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def curve(losses: list[float]) -> str:
    """Return means of ten equal parts of the losses."""
    size = max(1, math.ceil(len(losses) / 10))
    parts = [losses[start : start + size] for start in range(0, len(losses), size)]
    return "loss " + " ".join(f"{sum(part) / len(part):.3f}" for part in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=12_000, help="of the training, half of them yes or no")
    parser.add_argument("--questions", type=int, default=1_000, help="held out")
    parser.add_argument("--steps", type=int, default=300, help="with tower and projector as full weights")
    parser.add_argument("--lora-steps", type=int, default=100, help="of LoRA alone, after these")
    parser.add_argument("--rows-per-step", type=int, default=32)
    parser.add_argument("--full-rate", type=float, default=5e-4)
    parser.add_argument("--lora-rate", type=float, default=2e-4)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    options = parser.parse_args()
    home = LoratoryHome.from_environment()
    with tempfile.TemporaryDirectory() as root:
        quiz = Quiz(options, Path(root))
        text = prepare_demo(home)
        sees = prepare_demo_vision(lambda: text, home)
        steps = options.steps + options.lora_steps
        blind = quiz.score("Text only", quiz.train("Text only, LoRA", text, steps, has_images=False))
        first = quiz.train("Tower and projector as full weights", sees, options.steps, has_images=True, part="full")
        vision_share = quiz.score("Tower and projector", first)
        if options.lora_steps:
            merged = quiz.merged(first, sees)
            del first
            vision_share = quiz.score(
                "Then LoRA", quiz.train("LoRA from there", merged, options.lora_steps, has_images=True)
            )
    return int(vision_share[0] <= blind[1])


if __name__ == "__main__":
    sys.exit(main())
