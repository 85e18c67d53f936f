"""Files of models written to stop this program: each is refused soon with its name, and others notice nothing."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from loratory.engine.errors import ModelError
from loratory.engine.models.folder import ModelPart, check_model_folder
from tests.faults.hostile.watched import attack, require_survived

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits are those of Linux")

LONG = "x" * 1_000_000


def of_bytes(size: int, unit: bytes = b"[") -> object:
    """Return a function that writes a file of so many bytes without holding them."""

    def write(path: Path) -> None:
        block = unit * (1_000_000 // len(unit))
        with path.open("wb") as file:
            for _ in range(size // len(block)):
                file.write(block)

    return write


def settings(**values: Any) -> object:
    """Return a function that changes a JSON file."""

    def write(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return write


def without_template(**values: Any) -> object:
    """Return a function that puts a template into tokenizer_config.json, and removes that of its own file."""

    def write(path: Path) -> None:
        (path.parent / "chat_template.jinja").unlink()
        settings(**values)(path)  # type: ignore[operator]

    return write


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def slow_pre_tokenizer(path: Path) -> None:
    """Write a pattern that takes for ever on a row of usual words."""
    values = json.loads(path.read_text())
    pattern = {"Regex": r"(?:(?:.|\w)(?:.|\w)?)+[\x{1F600}]"}
    values["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(values))


TOKENIZERS: dict[str, tuple[Any, Any]] = {
    "300_mb_of_arrays": ({"tokenizer_json": of_bytes(300_000_000)}, r"tokenizer\.json of hostile-model has 300 MB"),
    "90_mb_of_arrays": ({"tokenizer_json": of_bytes(90_000_000)}, "hostile-model"),
    "90_mb_of_pairs": ({"tokenizer_json": of_bytes(90_000_000, b"[[],")}, "hostile-model"),
    "settings_of_50_mb": ({"tokenizer_config_json": of_bytes(50_000_000)}, r"tokenizer_config\.json of hostile-model"),
    "long_template_in_settings": (
        {"tokenizer_config_json": without_template(chat_template=LONG + "x")},
        "The chat template of hostile-model has 1,000,001 characters",
    ),
    "named_templates_in_settings": (
        {"tokenizer_config_json": without_template(chat_template=[{"name": "default", "template": LONG * 2}])},
        "The chat template of hostile-model has 2,000,000 characters",
    ),
    "additional_template": ({"additional_chat_templates__a_jinja": of_bytes(2_000_000)}, r"a\.jinja of hostile-model"),
    "fifo": ({"chat_template_jinja": fifo}, r"chat_template\.jinja of hostile-model is not a regular file"),
    "slow_pre_tokenizer": ({"tokenizer_json": slow_pre_tokenizer}, "hostile-model"),
}

CONFIGS: dict[str, tuple[Any, Any]] = {
    "a_billion_layers": (settings(num_hidden_layers=10**9), "num_hidden_layers|more modules"),
    "many_experts": (
        settings(
            model_type="mixtral",
            architectures=["MixtralForCausalLM"],
            num_hidden_layers=2000,
            num_local_experts=100_000,
        ),
        r"more modules|absurd|must be|^\d+$",  # a fast processor lists them all within the limit
    ),
    "many_layers": (settings(num_hidden_layers=1_900, hidden_size=64), ""),
    "layers_as_text": (settings(num_hidden_layers="9" * 5000), "wrong|cannot"),
    "deep": ("[" * 4_000_000, "cannot be read"),
    "long": (of_bytes(60_000_000, b" "), "cannot be read"),
}


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_hostile_tokenizer_is_refused_with_its_name_and_delays_nothing_else(name, target, hostile_model):
    files, text = TOKENIZERS[name]
    model = hostile_model(**files)

    came = attack(target.inspector, lambda: target.preview(model), target.good_page)

    require_survived(came)
    assert re.search(text, came.message), came.message


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_configuration_is_refused_or_listed_soon_and_delays_nothing_else(name, target, hostile_model):
    config, text = CONFIGS[name]
    model = hostile_model(config_json=config)

    came = attack(
        target.inspector, lambda: str(target.inspector.module_inventory(model).num_parameters), target.good_page
    )

    require_survived(came)
    assert re.search(text, came.message), came.message


@pytest.mark.parametrize(
    "header",
    [
        (8 * 10**18).to_bytes(8, "little"),
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        b"\x08\0\0\0\0\0\0\0" + b"[" * 8,
        b"",
    ],
    ids=["8_eb", "16_eb", "arrays", "empty"],
)
def test_a_hostile_header_of_weights_is_refused_before_anything_is_allocated(header, hostile_model):
    model = hostile_model(**{"model.safetensors": header})

    with pytest.raises(ModelError, match=r"model\.safetensors of hostile-model"):
        check_model_folder(Path(model.id), "hostile-model", ModelPart.WEIGHTS)
