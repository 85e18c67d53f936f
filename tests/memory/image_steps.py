"""Steps of our trainer on rows with images, of tiny models of each family, and what the estimate says of them."""

import contextlib
import io
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import RowLengths
from loratory.engine.data.conversation import IMAGE_MARK, Conversation, Message
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.render.tokenize import IGNORED_LABEL, RenderedRow, Rendering, RenderOptions, render_many
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.memory.phases import StepRules, simulate_step
from loratory.engine.memory.structure import find_targets, read_structure
from loratory.engine.memory.workload import workload_of_step
from loratory.engine.models.folder import read_config
from loratory.engine.models.shape import ModelShape
from loratory.engine.models.source import ModelSource
from loratory.engine.training.batching.images import ImageInputs
from tests.benchmarks.published.other_trainers import PlainTape
from tests.memory.traced_steps import trace
from tests.tiny_vision import VisionMember, make_tiny_vision_model
from tests.training.tiny_training import CPU, TinyTraining, make_config, make_training

# Wide enough that tensors of the tower are most of a step.
TOWER = {"hidden_size": 128, "intermediate_size": 256}
_EDGE = 200  # pixels


@dataclass(frozen=True)
class ImageRows:
    """A tiny model, and rows of an image each that differ in length."""

    folder: Path
    shape: ModelShape
    rows: list[RenderedRow]
    images: ImageInputs

    @property
    def lengths(self) -> RowLengths:
        pixels = tuple(sum(row.image_pixels) for row in self.rows)
        trained = tuple(sum(label != IGNORED_LABEL for label in row.labels) for row in self.rows)
        tokens = tuple(len(row.input_ids) for row in self.rows)
        return RowLengths(tokens=tokens, trained=trained, count=len(tokens), pixels=pixels, largest_image=max(pixels))


def make_image_rows(root: Path, member: VisionMember, tower: dict[str, Any] | None = None) -> ImageRows:
    """Make a model whose tower has other sizes, and four rows."""
    vision = member.vision | (tower or {})
    folder = make_tiny_vision_model(root / member.model_type, replace(member, vision=vision))
    tokenizer, _ = load_tokenizer(ModelSource(str(folder), member.model_type))
    store = MediaStore(root / "media")
    rows: list[RenderedRow] = []
    for number in range(4):
        file = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(noise).resize((_EDGE, _EDGE)).save(file, "PNG")
        question = Message("user", f"{IMAGE_MARK}what is in the image", images=(store.add(file.getvalue()),))
        answer = Message("assistant", "a picture of a number " * (3 + number % 2 * 2))
        conversation = Conversation((question, answer), completion_start=1)
        (rendering,) = render_many([(number, conversation)], tokenizer, RenderOptions(None, "completion"))
        assert isinstance(rendering, Rendering), rendering
        rows += rendering.rows
    shape = inventory_of(read_config(folder / "config.json", "tiny"))
    return ImageRows(folder, shape, rows, ImageInputs(tokenizer.image_text, store))


def image_training(data: ImageRows, out: Path, **sections: Any) -> tuple[RunConfig, TinyTraining]:
    """Build our trainer on these rows, two of them in a pass."""
    training = {"gradient_accumulation_steps": 1, "max_length": 2048} | sections.pop("training", {})
    config = make_config(data.folder, training=training, **sections)
    return config, make_training(config, data.rows, out, images=data.images)


def first_pass(training: TinyTraining) -> Any:
    """Return the tensors of the first pass of the run."""
    loop = training.trainer
    return next(iter(loop._batches.tensors(next(loop._planner.steps(0)).passes)))


def measure(config: RunConfig, training: TinyTraining) -> dict[str, int]:
    """Return the peaks of a step, in bytes of what it makes."""
    model, setup, batch = training.trainer.model, training.assembly.setup, first_pass(training)
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()

    def step(phase: Any) -> Any:
        context = torch.autocast("cpu", dtype=setup.autocast) if setup.autocast else contextlib.nullcontext()
        with setup.method.step(model):
            with phase("forward"), context:
                loss = model(**batch.inputs, trained_tokens=batch.trained)
            with phase("backward"):
                loss.backward()
        return loss

    return trace(model, step)


def predict(data: ImageRows, config: RunConfig) -> dict[str, int]:
    """Return the same peaks by the estimate, without the images that the processor made."""
    workload, structure = workload_of_step(data.shape, config, CPU, data.lengths), read_structure(data.shape)
    targets = find_targets(data.shape, workload.adapter, workload.vision)
    step = simulate_step(structure, workload, targets, StepRules(partial(PlainTape, is_watched=True)))
    peaks = {name: memory.total for name, memory in step.peaks.items()}
    return {"forward": peaks["forward"], "backward": max(peaks["loss_backward"], peaks["layer_backward"])}
