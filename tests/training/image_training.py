"""Trainings of tiny vision-language models on rows with images, ours and plain TRL's."""

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loratory.engine.config.run import RunConfig
from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.render.tokenize import RenderedRow, Rendering, TokenizedRow
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.source import ModelSource
from loratory.engine.training.batching.images import ImageInputs
from tests.image_rows import ImageRow, image_rows, render, trl_batch
from tests.tiny_vision import VisionMember, make_tiny_vision_model, trl_processor
from tests.training.tiny_training import TinyTraining, make_config, make_training


@dataclass(frozen=True)
class VisionRows:
    """A model of a family, its rows as both trainers take them, and what opens their images."""

    folder: Path
    member: VisionMember
    rows: list[ImageRow]
    sequences: list[TokenizedRow]
    images: ImageInputs
    tokenizer: Any

    def rejected(self, number: int) -> ImageRow:
        """Return a row with the last answer of the row after it."""
        row, other = self.rows[number], self.rows[(number + 1) % len(self.rows)]
        messages = (*row.conversation.messages[:-1], other.conversation.messages[-1])
        return ImageRow(Conversation(messages, completion_start=row.conversation.completion_start), row.images)

    def pairs(self) -> list[TokenizedRow]:
        """Return the rows as chosen answers, with rejected ones."""
        processor = trl_processor(self.folder, self.member)
        pairs = []
        for number, chosen in enumerate(self.sequences):
            row = self.rejected(number)
            rendering = render(row, self.tokenizer, "completion")
            assert isinstance(rendering, Rendering)
            rejected = _as_trl(rendering.rows[0], number, trl_batch([row], processor, self.member, "prompt_completion"))
            pairs.append(replace(chosen, rejected=rejected))
        return pairs


def make_vision_rows(root: Path, member: VisionMember, count: int = 24, largest: int = 200) -> VisionRows:
    """Make a model, and rows of its prompts and completions, with images from 8 pixels on."""
    folder = make_tiny_vision_model(root / member.model_type, member)
    tokenizer, _ = load_tokenizer(ModelSource(str(folder), member.model_type))
    store, processor = MediaStore(root / "media"), trl_processor(folder, member)
    rows = [_with_refs(row, store) for row in image_rows(count, largest=largest)]
    sequences: list[TokenizedRow] = []
    for number, row in enumerate(rows):
        rendering = render(row, tokenizer, "completion")
        assert isinstance(rendering, Rendering)
        assert len(rendering.rows) == 1
        sequences.append(_as_trl(rendering.rows[0], number, trl_batch([row], processor, member, "prompt_completion")))
    return VisionRows(folder, member, rows, sequences, ImageInputs(tokenizer.image_text, store), tokenizer)


def _with_refs(row: ImageRow, store: MediaStore) -> ImageRow:
    refs = iter([store.add(_png(image)) for image in row.images])
    messages = tuple(
        Message(m.role, m.content, images=tuple(next(refs) for _ in m.images)) for m in row.conversation.messages
    )
    return ImageRow(Conversation(messages, completion_start=row.conversation.completion_start), row.images)


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _as_trl(row: RenderedRow, number: int, batch: dict[str, torch.Tensor]) -> TokenizedRow:
    """Return a row with the labels of TRL, which also trains white space after the end of a turn."""
    assert batch["input_ids"][0].tolist() == row.input_ids
    return TokenizedRow(number, 0, row.input_ids, batch["labels"][0].tolist(), images=row.images)


def vision_config(data: VisionRows, **sections: dict[str, Any]) -> RunConfig:
    """Return LoRA in float32 for rows of any length."""
    training = {"max_length": 4096, "learning_rate": 1e-3} | sections.pop("training", {})
    return make_config(data.folder, training=training, **sections)


def vision_training(data: VisionRows, config: RunConfig, out: Path, **options: Any) -> TinyTraining:
    """Build our training on all rows; pairs of answers where the objective is dpo."""
    rows: Any = data.pairs() if config.training.objective == "dpo" else data.sequences
    return make_training(config, rows, out, images=data.images, **options)


def rows_of_steps(training: TinyTraining) -> list[list[int]]:
    """Return the numbers of the rows of each step of the first epoch."""
    steps = training.trainer._planner.steps(0)
    return [[row for plan in step.passes for row in plan.rows] for step in steps]


def trl_losses(
    data: VisionRows,
    model: Any,
    steps: Sequence[Sequence[int]],
    out: Path,
    learning_rate: float,
    *,
    pairs: bool = False,
) -> list[float]:
    """Return the losses of TRL's trainer with its vision collator, on the rows of these steps in one pass each."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    size = len(steps[0])
    assert {len(step) for step in steps} == {size}
    kind, config, own = (SFTTrainer, SFTConfig, {"completion_only_loss": True})
    if pairs:
        kind, config, own = DPOTrainer, DPOConfig, {}
    arguments = config(
        output_dir=str(out), per_device_train_batch_size=size, max_steps=len(steps), learning_rate=learning_rate,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, report_to="none", use_cpu=True,
        bf16=False, max_length=None, save_strategy="no", disable_tqdm=True, seed=42, gradient_checkpointing=False,
        train_sampling_strategy="sequential", remove_unused_columns=False, **own,
    )  # fmt: skip

    class Lookup:
        def __init__(self, collator: Any) -> None:
            self.collator = collator

        def __call__(self, examples: list[dict[str, Any]]) -> Any:
            return self.collator([example_of(example["number"]) for example in examples])

    def example_of(number: int) -> dict[str, Any]:
        example = data.rows[number].example("prompt_completion")
        if pairs:
            example |= {"chosen": example.pop("completion"), "rejected": data.rejected(number).messages[-1:]}
        return example

    numbers = [number for step in steps for number in step]
    columns = ("prompt", "chosen", "rejected") if pairs else ("prompt", "completion")
    blank = [{"number": number, "images": [], **dict.fromkeys(columns, "a")} for number in numbers]
    processor = trl_processor(data.folder, data.member)
    trainer = kind(model=model, args=arguments, train_dataset=Dataset.from_list(blank), processing_class=processor)
    trainer.data_collator = Lookup(trainer.data_collator)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def plain_copy(training: TinyTraining) -> Any:
    """Return a copy of the adapted model with forward passes of PEFT and transformers alone."""
    model = copy.deepcopy(training.trainer.model)
    for module in model.modules():
        vars(module).pop("forward", None)
        vars(module).pop("train", None)
    return model
