"""Every PEFT method of the registry on a model of two layers: trains, resumes bit by bit, loads with plain PEFT, merges."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.run import AdapterConfig
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.methods.registry import count_trainable
from loratory.engine.memory.structure import find_targets
from loratory.engine.runs.history.events import StepData
from loratory.engine.training.callbacks import RunCallback, TrainerHooks
from loratory.engine.training.checkpoints.state_files import save_adapter
from tests.training.tiny_training import make_config, make_rows, make_training

pytestmark = [
    # PEFT passes the prefix under transformers' earlier name for it.
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*GenerationMixin:UserWarning"),
]

ROWS = make_rows(12)
ADAPTERS = [name for name, method in METHODS.items() if not method.trains_all]
STEPS, SAVED_AT = 8, 3

# What a method needs on so small a model, and settings that only some runs have.
SETTINGS: dict[str, dict[str, object]] = {
    "lora": {"r": 4, "lora_dropout": 0.1},
    "adalora": {"init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 3, "lora_dropout": 0.1},
    "loha": {"r": 4, "rank_dropout": 0.2, "module_dropout": 0.1},
    "lokr": {"r": 2, "decompose_both": True},
    "oft": {"oft_block_size": 8},
    "vera": {"r": 8, "vera_dropout": 0.1},
    "miss": {"r": 8, "miss_dropout": 0.1},
    "prefix_tuning": {"num_virtual_tokens": 5},
    "prompt_tuning": {"num_virtual_tokens": 5, "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "The rank"},
    "p_tuning": {"num_virtual_tokens": 5, "encoder_hidden_size": 32},
}
VARIANTS = [
    ("adalora", {"init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 2, "deltaT": 2}),
    ("lokr", {"r": 2, "decompose_factor": 4}),
    ("oft", {"oft_block_size": 8, "coft": True, "eps": 0.01}),
    ("oft", {"oft_block_size": 8, "block_share": True, "use_cayley_neumann": False}),
    ("vera", {"r": 8, "save_projection": False}),
    ("miss", {"r": 8, "init_weights": "bat"}),
    ("miss", {"r": 8, "init_weights": "mini", "mini_r": 4}),
    ("prompt_tuning", {"num_virtual_tokens": 5, "prompt_tuning_init": "SAMPLE_VOCAB"}),
    (
        "p_tuning",
        {
            "num_virtual_tokens": 5,
            "encoder_hidden_size": 16,
            "encoder_reparameterization_type": "LSTM",
            "encoder_dropout": 0.1,
        },
    ),
]


def config_of(folder, method, **training):
    adapter = {"method": method, **SETTINGS.get(method, {})}
    config = make_config(folder, training={"max_steps": STEPS, **training})
    mapping = config.model_dump(mode="json")
    return type(config).model_validate({**mapping, "adapter": adapter})


def train(folder, method, output, *, save_at=SAVED_AT, resume_from=None):
    """Train to the end; write the state of step `save_at` to `output`."""
    config = config_of(folder, method, save_steps=save_at)
    trained: list[Any] = []

    def save():
        trainer = trained[0].trainer
        if trainer.state.global_step == save_at:
            output.mkdir(parents=True, exist_ok=True)
            trainer.write_state(output, trainer.gather_state())

    callback = RunCallback(config.training, False, lambda: False, lambda: None)
    trained.append(make_training(config, ROWS, output, hooks=TrainerHooks(save=save), callbacks=(callback,)))
    torch.manual_seed(54321)  # a new process has other random numbers
    trained[0].trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return trained[0]


def logits_of(model):
    model.eval()
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal_lm.set_attn_implementation("sdpa")  # Loratory's own takes joined rows only
    ids = torch.tensor([ROWS[0].input_ids])
    with torch.no_grad():
        return model(input_ids=ids).logits[:, -ids.shape[1] :]  # without virtual tokens


class Trained(NamedTuple):
    """What a run left."""

    steps: list[StepData]
    weights: dict[str, torch.Tensor]
    logits: torch.Tensor
    state: Path  # of step SAVED_AT
    adapter: Path


class Fresh(NamedTuple):
    """An untrained adapter."""

    config: AdapterConfig
    parameters: tuple[int, int]  # trainable and all, as PEFT counts
    logits: torch.Tensor
    base_logits: torch.Tensor
    adapter: Path


@pytest.fixture(scope="module")
def trained_runs(tiny_model_folder, tmp_path_factory):
    """Train each method with each settings once, when first used."""
    cache: dict[str, Trained] = {}

    def whole(method: str) -> Trained:
        name = f"{method} {SETTINGS.get(method)}"
        if name not in cache:
            folder = tmp_path_factory.mktemp("trained")
            training = train(tiny_model_folder, method, folder / "state")
            model = training.trainer.model
            if not METHODS[method].trains_all:
                save_adapter(model, training.trainer.processing_class, folder / "adapter")
            cache[name] = Trained(
                training.steps, training.weights(), logits_of(model), folder / "state", folder / "adapter"
            )
        return cache[name]

    return whole


@pytest.fixture(scope="module")
def fresh(tiny_model_folder, tmp_path_factory):
    """Add the adapter of each method with each settings once, when first used."""
    cache: dict[str, Fresh] = {}

    def untrained(method: str) -> Fresh:
        name = f"{method} {SETTINGS.get(method)}"
        if name not in cache:
            folder = tmp_path_factory.mktemp("fresh")
            config = config_of(tiny_model_folder, method)
            training = make_training(config, ROWS, folder)
            model = training.trainer.model
            save_adapter(model, training.trainer.processing_class, folder / "adapter")
            logits = logits_of(model)
            with model.disable_adapter():
                base_logits = logits_of(model)
            cache[name] = Fresh(
                config.adapter, model.get_nb_trainable_parameters(), logits, base_logits, folder / "adapter"
            )
        return cache[name]

    return untrained


@pytest.fixture(params=ADAPTERS)
def method(request):
    return request.param


def reload(folder: Path, adapter: Path) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), str(adapter))


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_died_ends_in_the_same_bits_as_one_that_did_not(method, trained_runs, tiny_model_folder, tmp_path):
    whole = trained_runs(method)
    again = train(tiny_model_folder, method, tmp_path / "other", resume_from=whole.state)

    for what in ("step", "loss", "grad_norm", "tokens"):
        assert [getattr(step, what) for step in again.steps] == [getattr(step, what) for step in whole.steps[SAVED_AT:]]
    for name, weight in again.weights().items():
        assert torch.equal(weight, whole.weights[name]), name


@pytest.mark.e2e
@pytest.mark.parametrize(("method", "settings"), VARIANTS)
@pytest.mark.filterwarnings("ignore:Specified to not save vera_A:UserWarning")
def test_a_variant_of_a_method_resumes_loads_and_is_counted_too(
    method, settings, trained_runs, fresh, tiny_model_folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(SETTINGS, method, settings)

    test_a_run_that_died_ends_in_the_same_bits_as_one_that_did_not(method, trained_runs, tiny_model_folder, tmp_path)
    test_a_saved_adapter_computes_the_same_with_plain_peft(method, trained_runs, tiny_model_folder)
    test_the_estimate_counts_the_parameters_that_peft_counts(method, fresh, tiny_model_folder)


@pytest.mark.exhaustive(quick=2)
def test_a_saved_adapter_computes_the_same_with_plain_peft(method, trained_runs, tiny_model_folder):
    run = trained_runs(method)
    before = logits_of(AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32))

    assert torch.allclose(logits_of(reload(tiny_model_folder, run.adapter)), run.logits, atol=1e-5)
    assert not torch.allclose(run.logits, before, atol=1e-3)


@pytest.mark.exhaustive(quick=2)
def test_merged_weights_compute_the_same_where_the_method_can_be_merged(method, trained_runs, tiny_model_folder):
    run = trained_runs(method)
    model = reload(tiny_model_folder, run.adapter)
    if not METHODS[method].mergeable:
        assert not hasattr(model.base_model, "merge_and_unload")
        return

    merged_model = model.merge_and_unload(safe_merge=True)

    assert torch.allclose(logits_of(merged_model), run.logits, atol=1e-4)


@pytest.mark.exhaustive(quick=2)
def test_a_fresh_adapter_changes_nothing_where_the_method_says_so(method, fresh):
    model = fresh(method)

    assert torch.allclose(model.logits, model.base_logits, atol=1e-6) == METHODS[method].starts_as_identity


@pytest.mark.exhaustive(quick=2)
def test_the_estimate_counts_the_parameters_that_peft_counts(method, fresh, tiny_model_folder):
    model = fresh(method)
    shape = inventory_of(json.loads((tiny_model_folder / "config.json").read_text()))

    counts = count_trainable(shape, model.config, find_targets(shape, model.config))

    assert (counts.trainable, counts.total) == model.parameters


def test_the_settings_of_a_method_are_those_of_its_configuration(method, fresh):
    model = fresh(method)

    saved_config = PeftConfig.from_pretrained(str(model.adapter)).to_dict()

    assert saved_config["peft_type"] == METHODS[method].peft_type
    for name, value in METHODS[method].peft_arguments(model.config).items():
        assert saved_config[name] == value or name == "total_step", name


def test_every_tensor_of_an_adapter_bears_a_mark_of_its_method(method, fresh):
    names = load_file(fresh(method).adapter / "adapter_model.safetensors")

    if METHODS[method].adapts_layers:
        assert all(any(mark in name for mark in METHODS[method].tensor_marks) for name in names)
    else:
        assert set(names) == {"prompt_embeddings"}


def test_a_prefix_starts_as_its_text_before_every_row(tiny_model_folder, tmp_path):
    config = config_of(tiny_model_folder, "prefix_tuning")
    text = AutoTokenizer.from_pretrained(tiny_model_folder)(" ".join([config.adapter.prefix_init_text] * 5)).input_ids
    ids = torch.tensor([text[:5] + ROWS[0].input_ids])

    model = make_training(config, ROWS, tmp_path).trainer.model

    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)(ids).logits[:, 5:]
    assert torch.allclose(logits_of(model), expected, atol=1e-4)


def test_a_prefix_without_a_text_starts_from_random_numbers(tiny_model_folder, tmp_path):
    config = make_config(tiny_model_folder, adapter={"method": "prefix_tuning", "prefix_init_text": " "})

    prefix = make_training(config, ROWS, tmp_path).weights()

    assert next(iter(prefix.values())).std() == pytest.approx(1.0, abs=0.1)
