"""Drafts for tests: a form with values, read for a small model on a device that the test chooses."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from loratory.engine.errors import EngineError
from loratory.engine.hardware.devices import list_devices
from loratory.engine.models.shape import ModelShape
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.run_place import HuggingFaceJobs, SlurmCluster, ThisMachine
from loratory.engine.places.slurm.place import ClusterPlace
from loratory.ui.backend.dataset_checks import DatasetChecks
from loratory.ui.draft import read_draft
from loratory.ui.form import JUDGE_FOR, Form
from loratory.ui.gradio_internals import Blocks
from tests.benchmarks.published.shapes import PublishedSizes, published_shape
from tests.fake_inspector import FakeInspector

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIZES = PublishedSizes(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=100,
    tie_word_embeddings=True, max_position_embeddings=512,
)  # fmt: skip


def small_shape() -> ModelShape:
    return published_shape("LlamaForCausalLM", SIZES)


@pytest.fixture
def form() -> Form:
    form = Form()
    with Blocks():
        form.register("adapter.target_modules", gr.CheckboxGroup([]))
        form.register(JUDGE_FOR, gr.Textbox())
        form.complete()
    return form


def form_values(form: Form, mapping: Mapping[str, Any] | None = None, **settings: object) -> list[Any]:
    """Return the values of a form that was filled with `mapping`, then set by hand: `adapter__r=8`."""
    values = dict(zip(form.names, form.updates(mapping or {}), strict=True))
    return list((values | {name.replace("__", "."): value for name, value in settings.items()}).values())


@cache
def known_devices():
    """Return the devices of this machine as first read, since their free memory changes."""
    return list_devices()


def draft_of(form: Form, shape: ModelShape | None, checks: DatasetChecks | None = None, model_error: EngineError | None = None, tokenizer_error: EngineError | None = None, **settings: object):  # fmt: skip
    services = SimpleNamespace(
        shapes=SimpleNamespace(
            get=lambda model_id, revision: shape if model_id else None,
            trouble=lambda model_id, revision: model_error,
        ),
        checks=checks or DatasetChecks(FakeInspector()),
        tokenizers=SimpleNamespace(trouble=lambda model: tokenizer_error),
        devices=known_devices,
        home=LoratoryHome(Path("unused")),
        place={
            "local": ThisMachine(known_devices),
            "jobs": HuggingFaceJobs(tuple),
            "slurm": SlurmCluster(ClusterPlace, tuple),
        }.__getitem__,
    )
    return read_draft(services, form, form_values(form, **settings))


def values_of(tab: Any, config) -> list:
    """Return what the browser sends for a configuration; for a known model, all-linear ticks every box."""
    shape = tab.page.services.shapes.get(config.model.id, None)
    targets = {} if shape is None else {"adapter__target_modules": list(shape.linear_names())}
    return form_values(tab.page.form, config.model_dump(mode="json"), **targets)
