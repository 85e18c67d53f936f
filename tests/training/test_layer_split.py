"""One model over several devices, simulated on pretended ones: tensors that know where they are and hold nothing.

Torch refuses to work on tensors of two devices also where it only pretends, so a pass that ends is a pass in which
everything was where it was needed.
"""

import contextlib
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from loratory.engine.errors import ConfigError
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.estimate import Estimator
from loratory.engine.memory.layer_split import divide
from loratory.engine.memory.workload import workload_of_run
from loratory.engine.models.source import ModelSource
from loratory.engine.training.batching.batches import PassTensors, pad
from loratory.engine.training.build import add_adapter
from loratory.engine.training.distribution import attach_device_hooks, device_map_of, plan_layer_split
from loratory.engine.training.ops.lora_linear import fuse_lora
from loratory.engine.training.ops.loss import TrainedTokens, attach_loss
from tests.tiny_model import make_tiny_model
from tests.training.tiny_training import GPU, make_config, make_rows

SPREAD = {"devices": [0, 1], "device_map": "balanced"}
LAYERS = 4
METHODS = ("lora", "ia3", "prefix_tuning", "none")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def parts_of(architecture, **sections):
    shape = inventory_of(architecture.to_dict())
    config = make_config(Path("x"), run=SPREAD, **sections)
    return Estimator(shape, GPU).parts(workload_of_run(shape, config, GPU), 2)


def architecture(**values):
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    return AutoConfig.for_model(
        values.pop("model_type", "llama"),
        **{**sizes, "num_key_value_heads": 2, "num_hidden_layers": LAYERS, "pad_token_id": 0, **values},
    )


def put(module, device):
    """Exchange all tensors of a module for pretended ones on a device."""
    for each in module.modules():
        for tensors in (each._parameters, each._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is None:
                    continue
                fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                if tensors is each._parameters:
                    fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                tensors[name] = fake


class KeepIndexes(TorchFunctionMode):
    """Keeps the device of `torch.tensor`: for pretended tensors it forgets the number of the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func is torch.tensor and device is not None and torch.device(device).index is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        return func(*args, **kwargs)


@pytest.fixture
def split_model(monkeypatch):
    """Build a model over two pretended devices as the worker prepares it, and a batch on the first."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # fake devices have none
    with contextlib.ExitStack() as stack:

        def build(method="lora", *, tied=False, checkpointing=False, model_type="llama"):
            settings = architecture(tie_word_embeddings=tied, model_type=model_type)
            parts = parts_of(settings, adapter={"method": method})
            with torch.device("meta"):
                device_map = device_map_of(AutoModelForCausalLM.from_config(settings), parts)
            causal_lm = AutoModelForCausalLM.from_config(settings)
            causal_lm.config.use_cache = False
            dropout = 0.1 if method == "lora" else 0.0
            config = make_config(
                Path("x"), adapter={"method": method, "lora_dropout": dropout, "num_virtual_tokens": 4}
            )
            model = add_adapter(causal_lm, config, ModelSource("x", "x"))
            fuse_lora(model)
            if checkpointing:
                model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
                model.enable_input_require_grads()
            batch = pad(make_rows(2), 0)
            stack.enter_context(FakeTensorMode())
            stack.enter_context(KeepIndexes())
            put(model, "meta:0")
            for name, device in device_map.items():
                put(causal_lm.get_submodule(name), f"meta:{device}")
            if tied:
                causal_lm.lm_head.weight = causal_lm.model.embed_tokens.weight
            for name, tokens in getattr(model, "prompt_tokens", {}).items():
                model.prompt_tokens[name] = fake(tokens)
            on_devices = {name: f"meta:{device}" for name, device in device_map.items()}
            skipped = causal_lm._skip_keys_device_placement
            dispatch_model(causal_lm, on_devices, main_device="meta:0", skip_keys=skipped)
            attach_device_hooks(causal_lm)
            attach_loss(causal_lm)
            model.train()
            inputs = {name: fake(value) for name, value in batch.inputs.items()}
            trained = TrainedTokens(*(fake(value) for value in batch.trained))
            return model, causal_lm, PassTensors(inputs, trained, batch.tokens, batch.sequences)

        yield build


def fake(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta:0")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("method", "checkpointing"),
    [(method, False) for method in METHODS] + [(method, True) for method in METHODS if method != "prefix_tuning"],
)
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_a_step_finds_everything_where_it_is_needed(method, tied, checkpointing, split_model):
    model, causal_lm, batch = split_model(method, tied=tied, checkpointing=checkpointing)

    loss = model(**batch.inputs, trained_tokens=batch.trained)
    loss.backward()

    assert loss.device == causal_lm.lm_head.weight.device == torch.device("meta", 0 if tied else 1)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.device == parameter.device for parameter in trainable)
    if method != "prefix_tuning":  # all of its parameters are one table
        assert {parameter.device.index for parameter in trainable} == {0, 1}


@pytest.mark.exhaustive
@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "mistral"])
def test_other_families_too(model_type, split_model):
    model, _, batch = split_model(model_type=model_type)

    model(**batch.inputs, trained_tokens=batch.trained).backward()


def test_a_layer_is_checkpointed_with_its_input_on_its_own_device(split_model):
    """Torch saves the random numbers of those devices alone: with others, dropout would differ when a layer runs again."""
    model, causal_lm, batch = split_model(checkpointing=True)
    devices = {}

    for number, layer in enumerate(causal_lm.model.layers):
        run = layer._gradient_checkpointing_func

        def note(function, hidden, *rest, number=number, run=run):
            devices[number] = hidden.device.index
            return run(function, hidden, *rest)

        layer._gradient_checkpointing_func = note
    model(**batch.inputs, trained_tokens=batch.trained)

    own = {number: layer.mlp.up_proj.weight.device.index for number, layer in enumerate(causal_lm.model.layers)}
    assert devices == own
    assert set(own.values()) == {0, 1}


def test_what_all_layers_are_given_is_copied_once_for_a_device(split_model):
    model, causal_lm, batch = split_model()
    values = []
    for layer in list(causal_lm.model.layers)[-2:]:
        layer.self_attn.register_forward_pre_hook(
            lambda _, __, kwargs: values.append((kwargs["attention_mask"], *kwargs["position_embeddings"])),
            with_kwargs=True,
        )

    model(**batch.inputs, trained_tokens=batch.trained)

    assert [tensor.device.index for tensor in values[0]] == [1, 1, 1]
    assert [id(tensor) for tensor in values[0]] == [id(tensor) for tensor in values[1]]


def test_the_plan_for_a_folder_places_every_tensor_of_the_model(tmp_path):
    folder = make_tiny_model(tmp_path / "model", num_hidden_layers=6, tie_word_embeddings=False)
    config = make_config(folder, run={"devices": [0, 1, 2], "device_map": "balanced"})

    device_map = plan_layer_split(ModelSource(str(folder), "tiny"), config, (GPU, GPU, GPU))

    model = AutoModelForCausalLM.from_pretrained(folder)
    tensors = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    assert all(any(name.startswith(f"{module}.") for module in device_map) for name in tensors)
    assert device_map["model.embed_tokens"] == 0
    assert device_map["lm_head"] == device_map["model.norm"] == 2
    devices = [device_map[f"model.layers.{number}"] for number in range(6)]
    assert devices == sorted(devices)
    assert set(devices) == {0, 1, 2}


def test_more_devices_than_layers_are_refused(tmp_path):
    folder = make_tiny_model(tmp_path / "model")
    config = make_config(folder, run={"devices": [0, 1, 2], "device_map": "balanced"})

    with pytest.raises(ConfigError, match="2 layers, which cannot be divided among 3 devices"):
        plan_layer_split(ModelSource(str(folder), "tiny"), config, (GPU, GPU, GPU))


@pytest.mark.parametrize(
    ("layers", "first", "last", "devices", "expected"),
    [
        ([1] * 8, 0, 0, 2, (4, 4)),
        ([1] * 9, 0, 0, 4, (3, 3, 2, 1)),
        ([1] * 10, 4, 0, 2, (3, 7)),
        ([1] * 10, 2, 2, 3, (3, 5, 2)),
        ([5, 1, 1, 1], 0, 0, 2, (1, 3)),
        ([1, 1], 100, 0, 2, (1, 1)),
    ],
)
def test_layers_are_divided_so_the_fullest_device_holds_least(layers, first, last, devices, expected):
    assert divide(layers, first, last, devices) == expected
