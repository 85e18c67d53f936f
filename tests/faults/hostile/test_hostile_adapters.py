"""Patterns written to hang whoever matches them, in an adapter's configuration or typed into the form."""

import json
import shutil
import time

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from loratory.engine.chat.contract import AdapterChoice, ChatTarget
from loratory.engine.chat.target import PlannedWeights, plan_load
from loratory.engine.chat.worker.adapter import AdaptedBase
from loratory.engine.chat.worker.adapter_patterns import base_module_names, resolve_patterns
from loratory.engine.config.run import AdapterConfig
from loratory.engine.errors import ConfigError, ModelError
from loratory.engine.memory.structure import find_targets
from loratory.engine.models.shape import PatternMatcher
from loratory.engine.training.methods.base import choose_targets
from tests.chat.tiny_adapters import lora, make_adapter

ANSWERED_WITHIN_SECONDS = 10.0
HANGS_RE = ("(.*.*)*(.*)*x$", "(.+)+\n")  # Python's `re`, which PEFT uses; `regex` sees at once that they match nothing
HANGS_REGEX = r"(?:(?:.|\w)(?:.|\w)?)+\d[A-Z]"
IDS = torch.arange(4, 24).reshape(1, -1)


@pytest.fixture(scope="module")
def adapter(tiny_model_folder, tmp_path_factory):
    return make_adapter(tiny_model_folder, tmp_path_factory.mktemp("adapters") / "good", lora())


@pytest.fixture
def hostile(adapter, tmp_path):
    """Return a function that copies the adapter with other values in its configuration."""

    folder = tmp_path / "hostile-adapter"

    def make(**values: object) -> PlannedWeights:
        shutil.copytree(adapter, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return PlannedWeights(folder=folder, name=folder.name, method="lora", peft_type="LORA")

    make.folder = folder  # type: ignore[attr-defined]
    return make


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    """Give patterns a third of their time: what ends with it ends with all of it, too."""
    monkeypatch.setattr(PatternMatcher.__init__, "__defaults__", (0.3,))


@pytest.fixture
def base(tiny_model_folder):
    return AdaptedBase(AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval(), "tiny")


def refusal_of(hostile, base, **values: object) -> str:
    """Why the adapter is refused; empty where it is not, because its patterns mean modules, or no module, at once."""
    message = ""
    try:
        base.attach(hostile(**values), "tuned")
    except ModelError as error:
        message = str(error)
    assert not message or "hostile-adapter" in message
    assert base.model(input_ids=IDS).logits.isfinite().all(), "the base is not as it was"
    return message


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("pattern", [*HANGS_RE, HANGS_REGEX, "x" * 5000, "(", "(" * 1900], ids=lambda text: text[:20])
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_a_pattern_of_an_adapter_never_hangs_it(field, pattern, hostile, base):
    message = refusal_of(hostile, base, **{field: pattern})

    if field == "target_modules":
        assert message
    if pattern not in HANGS_RE:
        assert f"The {field} of the adapter hostile-adapter" in message


@pytest.mark.exhaustive
@pytest.mark.parametrize("pattern", [*HANGS_RE, HANGS_REGEX], ids=lambda text: text[:20])
def test_all_other_patterns_of_an_adapter_never_hang_it_either(pattern, hostile, base):
    for values in (
        {"layers_to_transform": [0], "layers_pattern": pattern},
        {"layers_to_transform": [0], "layers_pattern": [pattern, "layers"]},
        {"rank_pattern": {pattern: 4}},
        {"alpha_pattern": {pattern: 4}},
        {"rank_pattern": {f"{pattern}{number}": 4 for number in range(300)}},
        {"modules_to_save": [pattern]},
    ):
        start = time.process_time()  # of computing, whatever runs next to this test
        refusal_of(hostile, base, **values)
        assert time.process_time() - start < ANSWERED_WITHIN_SECONDS / 2, values
        base.detach_all()
        shutil.rmtree(hostile.folder)


@pytest.mark.parametrize(
    "values",
    [
        {"modules_to_save": ["(.*.*)*(.*)*x"]},
        {"layers_to_transform": "all of them", "layers_pattern": "layers"},
        {"rank_pattern": [1, 2]},
        {"rank_pattern": {HANGS_REGEX: 4}},
    ],
    ids=lambda values: "-".join(values)[:40],
)
def test_what_cannot_be_meant_is_refused_with_its_name(values, hostile, base):
    assert f"The {[*values][-1]} of the adapter hostile-adapter" in refusal_of(hostile, base, **values)


def test_a_second_adapter_is_bounded_as_the_first(hostile, adapter, base):
    base.attach(PlannedWeights(folder=adapter, name="good", method="lora", peft_type="LORA"), "first")

    with pytest.raises(ModelError, match="hostile-adapter"):
        base.attach(hostile(target_modules=HANGS_REGEX), "second")


def test_a_configuration_of_great_size_is_refused_before_it_is_read(hostile):
    weights = hostile()
    with (weights.folder / "adapter_config.json").open("a") as file:
        file.write(" " * 50_000_000)

    with pytest.raises(ModelError, match=r"adapter_config\.json of hostile-adapter cannot be read"):
        plan_load(ChatTarget(tuned=AdapterChoice(folder=weights.folder)))


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": r".*\.(q_proj|down_proj)"},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 0},
        {"target_modules": r".*proj", "exclude_modules": r".*\.(k|v|o|gate|up)_proj"},
        {"rank_pattern": {r"model\.layers\.\d+\.mlp\.down_proj": 2}, "alpha_pattern": {"q_proj": 1}},
    ],
    ids=lambda values: "-".join(values),
)
def test_harmless_patterns_mean_the_same_modules_as_peft_finds(values, tiny_model_folder, tmp_path):
    from peft import get_peft_model

    config = lora(**values)
    folder = make_adapter(tiny_model_folder, tmp_path / "adapter", lora(**values))
    expected = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), config).state_dict()
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)

    resolved = PeftConfig.from_pretrained(str(folder))
    resolve_patterns(resolved, base_module_names(model), "adapter")
    result = PeftModel.from_pretrained(model, str(folder), config=resolved).state_dict()

    assert {name: tuple(tensor.shape) for name, tensor in result.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    assert not isinstance(resolved.target_modules, str)


@pytest.mark.exhaustive
@pytest.mark.parametrize("pattern", [*HANGS_RE, HANGS_REGEX], ids=lambda text: text[:20])
def test_a_pattern_that_was_typed_is_bounded_in_training_and_in_the_estimate(pattern, base, tiny_model_folder):
    from loratory.engine.config.run import ModelConfig
    from loratory.engine.inspector.worker.inventory import module_inventory
    from loratory.engine.paths import LoratoryHome

    config = AdapterConfig(target_modules=pattern)
    with pytest.raises(ConfigError, match=r"takes too long|matches no module"):
        choose_targets(base.model, config)
    shape = module_inventory(ModelConfig(id=str(tiny_model_folder)), LoratoryHome(tiny_model_folder.parent / "home"))
    with pytest.raises(ConfigError, match=r"takes too long|matches no module"):
        find_targets(shape, config)
