"""Training on rows with images: losses are TRL's, parts are trained as the settings say, and runs resume bit by bit."""

import copy

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText

from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.errors import ConfigError, ModelError
from loratory.engine.models.families.registry import family_of
from loratory.engine.training.checkpoints import state_files
from loratory.engine.training.image_parts import image_parts_of
from loratory.engine.training.ops.loss import causal_lm_of
from tests.tiny_vision import MEMBERS, member_of
from tests.training.image_training import (
    VisionRows,
    make_vision_rows,
    plain_copy,
    rows_of_steps,
    trl_losses,
    vision_config,
    vision_training,
)
from tests.training.tiny_training import make_training

CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 0}
FAMILIES = [member.model_type for member in MEMBERS]
PARTS = [
    ("adapter", "frozen"),
    ("frozen", "full"),
    ("full", "full"),
    ("full", "adapter"),
    ("adapter", "full"),
    ("full", "frozen"),
]


@pytest.fixture(scope="module")
def vision_rows(tmp_path_factory):
    """Return the rows and the model of a family, made once."""
    root, known = tmp_path_factory.mktemp("vision"), {}

    def make(model_type: str) -> VisionRows:
        if model_type not in known:
            known[model_type] = make_vision_rows(root, member_of(model_type), count=12)
        return known[model_type]

    return make


def part_weights(model, part):
    """Return the weights of the base that are in a part: tower, projector, or language for the rest."""
    base = causal_lm_of(model)
    parts = image_parts_of(base)
    return {name: p for name, p in base.named_parameters() if (parts.family.part_of(name) or "language") == part}


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_trl(family, vision_rows, tmp_path):
    data = vision_rows(family)
    training = vision_training(data, vision_config(data, training={"max_steps": 3, **CONSTANT}), tmp_path / "ours")
    steps, model = rows_of_steps(training)[:3], plain_copy(training)

    training.trainer.train()
    expected = trl_losses(data, model, steps, tmp_path / "trl", 1e-3)

    assert training.losses == pytest.approx(expected, rel=1e-5)
    assert training.losses[1] != training.losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_of_pairs_are_those_of_trl(family, vision_rows, tmp_path):
    data = vision_rows(family)
    settings = {"max_steps": 2, "objective": "dpo", **CONSTANT}
    training = vision_training(data, vision_config(data, training=settings), tmp_path / "ours")
    steps, model = rows_of_steps(training)[:2], plain_copy(training)

    training.trainer.train()
    expected = trl_losses(data, model, steps, tmp_path / "trl", 1e-3, pairs=True)

    assert training.losses == pytest.approx(expected, rel=1e-4)
    assert training.losses[1] != training.losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_language_model_is_trained_by_default(family, vision_rows, tmp_path):
    data = vision_rows(family)
    training = vision_training(data, vision_config(data, training={"max_steps": 2}), tmp_path)
    model = training.trainer.model
    before = copy.deepcopy(
        {name: p for part in ("tower", "projector") for name, p in part_weights(model, part).items()}
    )

    training.trainer.train()

    after = {name: p for part in ("tower", "projector") for name, p in part_weights(model, part).items()}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None and not p.requires_grad for p in after.values())
    language = [name for name, p in part_weights(model, "language").items() if p.requires_grad]
    assert len(language) == 2 * 7 * 2  # A and B of seven layers in each of two blocks
    model.train()
    base = causal_lm_of(model)
    for path in image_parts_of(base).outside_language_model:
        seeing = [module for module in base.get_submodule(path).modules() if isinstance(module, torch.nn.Linear)]
        assert seeing or family == "gemma3"
        assert not any(module.training for module in seeing)


def test_a_frozen_tower_keeps_no_graph_even_with_gradient_checkpointing(vision_rows, tmp_path):
    data = vision_rows("idefics3")
    config = vision_config(data, training={"max_steps": 1, "gradient_checkpointing": True})
    training = vision_training(data, config, tmp_path)
    outputs = []
    base = causal_lm_of(training.trainer.model)
    base.get_submodule("model.connector").register_forward_hook(lambda _m, _i, output: outputs.append(output))

    training.trainer.train()

    assert outputs
    assert not any(output.requires_grad for output in outputs)


@pytest.mark.parametrize(("tower", "projector"), PARTS)
@pytest.mark.parametrize("family", ["idefics3", "qwen3_vl", "gemma3", "llava_onevision"])
def test_parts_are_trained_as_the_settings_say(family, tower, projector, vision_rows, tmp_path):
    data = vision_rows(family)
    config = vision_config(data, training={"max_steps": 3}, vision={"tower": tower, "projector": projector})
    if family == "gemma3" and projector == "adapter":
        with pytest.raises(ConfigError, match="multi_modal_projector of Gemma 3 has no linear layer among the targets"):
            vision_training(data, config, tmp_path / "run")
        return
    training = vision_training(data, config, tmp_path / "run")
    model, before = training.trainer.model, training.weights()
    training.trainer.train()
    after = training.weights()

    for part, how in (("tower", tower), ("projector", projector)):
        trained = {n for n, p in part_weights(model, part).items() if p.requires_grad}
        assert {"adapter": "lora_" in "".join(trained), "full": "modules_to_save" in "".join(trained)} == {
            "adapter": how == "adapter", "full": how == "full"
        }  # fmt: skip
        assert bool(trained) == (how != "frozen")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    own = {name for part in ("tower", "projector") for name, p in part_weights(model, part).items() if p.requires_grad}
    assert any(name.removeprefix("base_model.model.") in own for name in changed)
    saved_and_loaded(training, data, tmp_path)


def saved_and_loaded(training, data, tmp_path):
    """Require that PEFT and transformers alone load the adapter, and compute the same."""
    model = training.trainer.model.eval()
    state_files.save_adapter(model, data.tokenizer, tmp_path / "adapter")
    base = AutoModelForImageTextToText.from_pretrained(data.folder, dtype=torch.float32)
    plain = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    batch = training.trainer._batches.tensors(next(training.trainer._planner.steps(0)).passes)
    inputs = next(iter(batch)).inputs
    assert "pixel_values" in inputs
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_loads_with_peft_alone(family, vision_rows, tmp_path):
    data = vision_rows(family)
    training = vision_training(data, vision_config(data, training={"max_steps": 2}), tmp_path / "run")
    training.trainer.train()

    saved_and_loaded(training, data, tmp_path)
    assert (tmp_path / "adapter" / "preprocessor_config.json").is_file() or (
        tmp_path / "adapter" / "processor_config.json"
    ).is_file()


def test_names_mean_modules_of_the_language_model_alone(vision_rows, tmp_path):
    data = vision_rows("gemma3")  # whose tower has a q_proj too
    config = vision_config(data, adapter={"target_modules": ["q_proj"]})
    model = vision_training(data, config, tmp_path).trainer.model

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2
    assert all("language_model" in name and "q_proj" in name for name in trained)
    assert isinstance(model.peft_config["default"].target_modules, str)  # one expression


@pytest.mark.parametrize("method", ["ia3", "adalora", "vera", "loha", "oft"])
def test_other_methods_adapt_the_language_model_alone(method, vision_rows, tmp_path):
    data = vision_rows("qwen2_5_vl")
    extra = {"tinit": 1, "tfinal": 1} if method == "adalora" else {}
    try:
        config = vision_config(data, adapter={"method": method, **extra}, training={"max_steps": 4})
    except ConfigError:
        pytest.skip("not a method here")
    training = vision_training(data, config, tmp_path)
    training.trainer.train()

    names = [name for name, p in training.trainer.model.named_parameters() if p.requires_grad]
    assert names
    assert all("visual" not in name for name in names)
    assert training.losses[-1] != training.losses[0]


@pytest.mark.parametrize(("tower", "projector"), [("frozen", "frozen"), ("frozen", "full"), ("full", "frozen")])
def test_full_fine_tuning_trains_what_is_not_frozen(tower, projector, vision_rows, tmp_path):
    data = vision_rows("qwen2_vl")
    vision = {"tower": tower, "projector": projector}
    config = vision_config(data, adapter={"method": "none"}, training={"max_steps": 1}, vision=vision)
    training = vision_training(data, config, tmp_path)
    training.trainer.train()

    model = training.trainer.model
    for part, how in (("tower", tower), ("projector", projector), ("language", "full")):
        assert {p.requires_grad for p in part_weights(model, part).values()} == {how == "full"}, part


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_sees_with_whole_weights(quantization, vision_rows, tmp_path):
    data = vision_rows("idefics3")
    config = vision_config(data, model={"quantization": quantization}, training={"max_steps": 2})
    training = vision_training(data, config, tmp_path)
    training.trainer.train()

    base = causal_lm_of(training.trainer.model)
    kinds = {
        part: {type(module).__name__ for module in base.get_submodule(path).modules()}
        for part, path in (
            ("tower", "model.vision_model"),
            ("projector", "model.connector"),
            ("text", "model.text_model"),
        )
    }
    packed = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization]
    assert packed in kinds["text"] | {type(m.base_layer).__name__ for m in base.modules() if hasattr(m, "base_layer")}
    assert packed not in kinds["tower"] | kinds["projector"]
    assert training.losses[-1] != training.losses[0]


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning", "p_tuning"])
@pytest.mark.parametrize("family", FAMILIES)
def test_virtual_tokens_train_or_are_refused_with_the_reason(family, method, vision_rows, tmp_path):
    data = vision_rows(family)
    config = vision_config(data, adapter={"method": method, "num_virtual_tokens": 4}, training={"max_steps": 2})
    if not family_of({"model_type": family}).takes_virtual_tokens:
        with pytest.raises(ConfigError, match=r"finds the positions of images by its tokens, which .* choose LoRA"):
            vision_training(data, config, tmp_path)
        return

    training = vision_training(data, config, tmp_path)
    training.trainer.train()

    assert training.losses[-1] != training.losses[0]


@pytest.mark.parametrize("family", ["idefics3", "qwen2_5_vl", "gemma3"])
def test_rows_of_text_alone_are_joined_as_those_of_a_text_model(family, vision_rows, tmp_path):
    data = vision_rows(family)
    rows = [TokenizedRow(n, 0, row.input_ids, row.labels) for n, row in enumerate(data.sequences) if not row.images] * 4
    training = make_training(vision_config(data, training={"max_steps": 3, **CONSTANT}), rows, tmp_path)
    training.trainer.train()

    assert training.assembly.setup.settings.batching == ("padded" if family == "gemma3" else "joined")
    assert training.losses[-1] != training.losses[0]


def test_packing_is_refused_for_rows_with_images(vision_rows, tmp_path):
    data = vision_rows("idefics3")

    with pytest.raises(ModelError, match="Rows with images are padded"):
        vision_training(data, vision_config(data, training={"packing": True}), tmp_path)
