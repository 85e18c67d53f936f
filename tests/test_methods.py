"""The seam of PEFT methods: everything asks the registry, and what the registry says agrees with PEFT."""

import ast
from itertools import product
from pathlib import Path

import peft
import pytest

from loratory.engine.config.load import config_from_mapping, config_to_yaml, mapping_from_yaml
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.run import AdapterConfig
from loratory.engine.errors import ConfigError
from loratory.engine.memory.methods.registry import MEMORY_RULES
from loratory.engine.training.methods.registry import METHOD_TRAINERS

ROOT = Path(__file__).parents[1]
HOMES = tuple(ROOT / "engine" / part / "methods" for part in ("config", "memory", "training"))
ADAPTERS = [method for method in METHODS.values() if not method.trains_all]

# "none" is a value of many settings; it is a method only where something named method is compared with it.
NAMES = {*METHODS, *(method.label for method in METHODS.values()), "QLoRA", "full"}
AMBIGUOUS = {"none", "full"}


def constants(node: ast.AST) -> set[str]:
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def names_a_method(node: ast.AST) -> bool:
    return any(
        (isinstance(part, ast.Attribute) and part.attr == "method")
        or (isinstance(part, ast.Name) and part.id == "method")
        for part in ast.walk(node)
    )


def comparisons_by_name(source: str) -> list[int]:
    """Lines where a method is compared, looked up or matched by its name."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.MatchValue):
            result = constants(node) & NAMES
            if result - AMBIGUOUS or (result and names_a_method(node)):
                lines.append(node.lineno)
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            if len(keys & (NAMES - AMBIGUOUS)) > 1:
                lines.append(node.lineno)
    return lines


def test_nothing_compares_a_method_by_its_name_outside_the_registries():
    files = [path for top in ("engine", "ui") for path in (ROOT / top).rglob("*.py")] + [ROOT / "app.py"]
    result = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        if not any(home in path.parents for home in HOMES)
        for line in comparisons_by_name(path.read_text(encoding="utf-8"))
    ]

    assert result == []


@pytest.mark.parametrize(
    "source",
    [
        'adapter.method == "lora"',
        'config.adapter.method != "none"',
        'method in ("ia3", "prefix_tuning")',
        '{"lora": 1, "ia3": 2}[method]',
        'trained.method == "full"',
        'choice == "Prefix tuning"',
    ],
)
def test_a_comparison_by_name_is_found(source):
    assert comparisons_by_name(source) == [1]


def test_every_method_has_a_memory_rule_and_no_rule_is_left_over():
    assert set(MEMORY_RULES) == set(METHODS)
    assert set(METHOD_TRAINERS) <= set(METHODS)


@pytest.mark.parametrize("method", ADAPTERS, ids=lambda method: method.name)
def test_traits_agree_with_peft(method):
    peft_type = peft.PeftType(method.peft_type)
    tuner = peft.PEFT_TYPE_TO_TUNER_MAPPING.get(peft_type)
    config = getattr(peft, method.peft_class)

    assert peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] is config
    assert method.adapts_layers == (not config(**method.peft_arguments(AdapterConfig())).is_prompt_learning)
    if method.adapts_layers:
        assert method.mergeable == hasattr(tuner, "merge_and_unload")
    else:
        assert not method.mergeable


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_fields_of_a_method_are_settings_and_survive_yaml(method):
    config = config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "d"}, "adapter": {"method": method.name}})

    assert set(method.fields) <= set(AdapterConfig.model_fields)
    assert set(method.advanced) <= set(method.fields)
    assert config_from_mapping(mapping_from_yaml(config_to_yaml(config))) == config
    for name, value in method.defaults.items():
        assert getattr(config.adapter, name) == value


def test_a_method_keeps_settings_that_a_person_gave_and_changes_other_defaults():
    for former in METHODS:
        for method in METHODS.values():
            changes = AdapterConfig(method=former).changes_for(method.name)
            assert AdapterConfig(**changes) == AdapterConfig(method=former).model_copy(update=changes)
            assert AdapterConfig(method=former, r=77).changes_for(method.name).get("r", 77) == 77


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_what_a_method_cannot_be_combined_with_is_refused_before_anything_starts(method):
    for quantization, checkpointing, packing in product(("none", "nf4", "fp4", "int8"), (False, True), (False, True)):
        mapping = {
            "model": {"id": "m", "quantization": quantization},
            "dataset": {"source": "d"},
            "adapter": {"method": method.name},
            "training": {"gradient_checkpointing": checkpointing, "packing": packing},
        }
        expected = {
            *(["model.quantization"] if quantization not in ("none", *method.quantization) else []),
            *(["training.gradient_checkpointing"] if checkpointing and not method.gradient_checkpointing else []),
            *(["training.packing"] if packing and method.virtual_tokens != "none" else []),
        }
        if not expected:
            config_from_mapping(mapping)
            continue
        with pytest.raises(ConfigError) as error_info:
            config_from_mapping(mapping)
        problems = {problem.field: problem.message for problem in error_info.value.problems}
        assert problems.keys() == expected
        for field in expected - {"training.packing"}:
            assert problems[field].startswith(method.label)
