"""Every method on every precision, with and without checkpointing and packing, on a model of two layers: trains, saves,
loads again and answers. Of the cells of methods with all of these, every second one is trained, which has each combination
of any three settings; what is refused is in `tests/test_methods.py`."""

import itertools

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.models.source import ModelSource
from loratory.engine.training.build import load_model
from loratory.engine.training.checkpoints.state_files import save_adapter
from loratory.engine.training.placement import Placement, choose_precision
from tests.training.tiny_training import CPU, Row, make_training

pytestmark = [
    pytest.mark.e2e,
    # PEFT passes the prefix under transformers' earlier name for it.
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),
]

QUANTIZATIONS = ("none", "nf4", "fp4", "int8")
# Of the first every second allowed cell is trained, of the next every one, of all other methods every fourth.
WITH_ALL_SETTINGS = ("lora", "ia3")
WITH_MANY_SETTINGS = ("prefix_tuning", "none")
# Saved in another form than trained: with fewer ranks, or as what an encoder computes. See training/test_methods.py.
SAVED_OTHERWISE = ("adalora", "p_tuning")
CELLS = list(itertools.product(METHODS, QUANTIZATIONS, (False, True), (False, True)))


def is_refused(method, quantization, checkpointing, packing):
    traits = METHODS[method]
    return (
        (quantization != "none" and quantization not in traits.quantization)
        or (checkpointing and not traits.gradient_checkpointing)
        or (packing and traits.virtual_tokens != "none")
    )


def is_trained(method, quantization, checkpointing, packing):
    if is_refused(method, quantization, checkpointing, packing):
        return False
    index = list(METHODS).index(method) + QUANTIZATIONS.index(quantization) + checkpointing + packing
    if method in WITH_MANY_SETTINGS:
        return True
    return index % (2 if method in WITH_ALL_SETTINGS else 4) == 0


def cell_config(folder, method, quantization, checkpointing, packing):
    return config_from_mapping(
        {
            "model": {"id": str(folder), "quantization": quantization},
            "adapter": {
                "method": method,
                "r": 4,
                "lora_dropout": 0.05,
                "num_virtual_tokens": 4,
                "oft_block_size": 8,
                "encoder_hidden_size": 32,
            },
            "dataset": {"source": "rows"},
            "training": {
                "max_steps": 2,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 1,
                "learning_rate": 1e-3 if method != "none" else 1e-5,
                "max_length": 48,
                "gradient_checkpointing": checkpointing,
                "packing": packing,
            },
        }
    )


def name_of(cell):
    method, quantization, checkpointing, packing = cell
    return f"{method}-{quantization}{'-checkpointing' if checkpointing else ''}{'-packing' if packing else ''}"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def rows(tokenizer):
    texts = ["LoRA trains two thin matrices.", "The rank is 16.", "Alpha is twice the rank.", "Dropout helps a little."]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return [Row(row, [-100, *row[1:]]) for row in ids]


@pytest.fixture(scope="module")
def bases():
    """Frozen models by precision; loaded once, and handed back without an adapter."""
    return {}


def base_of(bases, config):
    if config.adapter.method == "none":
        return None  # all of it is trained, so it cannot be shared
    quantization = config.model.quantization
    if quantization not in bases:
        precision, placement = choose_precision(config, CPU), Placement(CPU, torch.device("cpu"))
        bases[quantization] = load_model(ModelSource(config.model.id, "tiny"), config, precision, placement)
    base = bases[quantization]
    base.activation_checkpointing_disable()
    base.set_attn_implementation("sdpa")
    return base


def take_off(model):
    """Put the frozen layers back in the place of adapted ones; PEFT's own way refuses some precisions."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())


@pytest.mark.parametrize("cell", [cell for cell in CELLS if is_trained(*cell)], ids=name_of)
def test_an_allowed_cell_trains_saves_loads_and_answers(cell, bases, tiny_model_folder, tokenizer, rows, tmp_path):
    config = cell_config(tiny_model_folder, *cell)
    training = make_training(config, rows, tmp_path / "out", base=base_of(bases, config))
    before = training.weights()
    training.trainer.train()
    after = training.weights()

    assert len(training.losses) == 2
    assert all(0 < loss < 25 for loss in training.losses)  # a prefix begins with random keys and values
    assert any(not torch.equal(after[name], weights) for name, weights in before.items())
    save_adapter(training.trainer.model, tokenizer, tmp_path / "adapter", torch.bfloat16)
    if config.adapter.method == "none":
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16).eval()
    else:
        take_off(training.trainer.model)
        again = PeftModel.from_pretrained(base_of(bases, config), tmp_path / "adapter").eval()
    prompt = tokenizer("The rank is", return_tensors="pt")
    # PEFT leaves IA3's vectors in float32, which 4-bit layers take under autocast only.
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        answer = again.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert answer.shape[1] == prompt["input_ids"].shape[1] + 2
    loaded = {name: weights for name, weights in again.named_parameters() if name in after}
    if config.adapter.method not in SAVED_OTHERWISE:
        assert loaded.keys() == after.keys()
        for name, weights in loaded.items():
            torch.testing.assert_close(weights.float(), after[name], rtol=0.01, atol=1e-3, msg=name)
    take_off(again)
