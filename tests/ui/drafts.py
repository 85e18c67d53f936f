"""Drafts for tests: a form with values, read for a small model on a device that the test chooses."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from engine.errors import EngineError
from engine.executors.places import HuggingFaceJobs, SlurmCluster, ThisMachine
from engine.executors.slurm.place import ClusterPlace
from engine.hardware.devices import list_devices
from engine.models.shape import ModelShape, ModuleShape
from engine.paths import LoratoryHome
from tests.fake_inspector import FakeInspector
from ui.backend.dataset_checks import DatasetChecks
from ui.draft import read_draft
from ui.form import JUDGE_FOR, Form
from ui.gradio_internals import Blocks

SIZES = {  # of a Llama with hidden size 64 and four heads
    "q_proj": (64, 64),
    "k_proj": (64, 64),
    "v_proj": (64, 64),
    "o_proj": (64, 64),
    "gate_proj": (64, 128),
    "up_proj": (64, 128),
    "down_proj": (128, 64),
}
NAMES = tuple(SIZES)


def small_shape() -> ModelShape:
    linears = [
        ModuleShape(
            name=f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}",
            kind="linear",
            class_name="Linear",
            parameters=inner * outer,
            in_features=inner,
            out_features=outer,
        )
        for layer in range(2)
        for name, (inner, outer) in SIZES.items()
    ]
    norms = [
        ModuleShape(name=name, kind="norm", class_name="LlamaRMSNorm", parameters=64, in_features=64, out_features=64)
        for name in ("model.layers.0.input_layernorm", "model.layers.1.input_layernorm", "model.norm")
    ]
    embedding = ModuleShape(
        name="model.embed_tokens",
        kind="embedding",
        class_name="Embedding",
        parameters=6400,
        in_features=100,
        out_features=64,
    )
    head = ModuleShape(
        name="lm_head", kind="linear", class_name="Linear", parameters=0, in_features=64, out_features=100,
        tied_to="model.embed_tokens", is_output_head=True,
    )  # fmt: skip
    modules = (embedding, *linears, *norms, head)
    return ModelShape(
        architecture="LlamaForCausalLM",
        model_type="llama",
        num_parameters=sum(module.parameters for module in modules),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        intermediate_size=128,
        vocab_size=100,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        modules=modules,
    )


@pytest.fixture
def form() -> Form:
    form = Form()
    with Blocks():
        form.register("adapter.target_modules", gr.CheckboxGroup([]))
        form.register(JUDGE_FOR, gr.Textbox())
        form.complete()
    return form


@cache
def known_devices():
    """The devices of this machine, whose free memory changes from moment to moment, as they were at the first look."""
    return list_devices()


def draft_of(form: Form, shape: ModelShape | None, checks: DatasetChecks | None = None, trouble: EngineError | None = None, untokenized: EngineError | None = None, **given: object):  # fmt: skip
    services = SimpleNamespace(
        shapes=SimpleNamespace(
            get=lambda model_id, revision: shape if model_id else None, trouble=lambda model_id, revision: trouble
        ),
        checks=checks or DatasetChecks(FakeInspector()),
        tokenizers=SimpleNamespace(trouble=lambda model: untokenized),
        devices=known_devices,
        home=LoratoryHome(Path("unused")),
        place={
            "local": ThisMachine(known_devices),
            "jobs": HuggingFaceJobs(tuple),
            "slurm": SlurmCluster(ClusterPlace, tuple),
        }.__getitem__,
    )
    values = dict(zip(form.names, form.updates({}), strict=True))
    values |= {name.replace("__", "."): value for name, value in given.items()}
    return read_draft(services, form, [values[name] for name in form.names])


def values_of(tab: Any, config) -> list:
    """What the browser sends for a configuration: with a known model, all-linear is every box ticked."""
    form = tab.page.form
    values = dict(zip(form.names, form.updates(config.model_dump(mode="json")), strict=True))
    shape = tab.page.services.shapes.get(config.model.id, None)
    if shape is not None:
        values["adapter.target_modules"] = list(shape.linear_names())
    return list(values.values())
