"""The module inventory: exact for the real architectures, and a message instead of a number for nonsense.

`tests/memory/test_every_architecture.py` has all those that transformers knows.
"""

import importlib.metadata
import json
import warnings
import zipfile
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import HubUnreachableError, ModelError
from loratory.engine.inspector.worker import inventory
from loratory.engine.inspector.worker.inventory import inventory_of, module_inventory
from loratory.engine.inspector.worker.load_tokenizer import complete_details
from loratory.engine.models.catalog import find_in_catalog, list_catalog
from loratory.engine.models.inventory_cache import SHIPPED, architecture_values, cached_inventory, known_inventory
from loratory.engine.models.shape import ModelDetails

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}
GPT2 = {"model_type": "gpt2", "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 200}
SMALL_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "gemma2": {**LLAMA, "model_type": "gemma2", "head_dim": 16},
    "phi3": {**LLAMA, "model_type": "phi3", "pad_token_id": 0},
    "falcon": {**LLAMA, "model_type": "falcon", "multi_query": True, "num_kv_heads": 1},
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 4},
    "qwen2_moe": {**LLAMA, "model_type": "qwen2_moe", "num_experts": 4, "moe_intermediate_size": 32},
    "gpt_oss": {**LLAMA, "model_type": "gpt_oss", "num_local_experts": 4, "head_dim": 16},
    "deepseek_v3": {**LLAMA, "model_type": "deepseek_v3", "n_routed_experts": 8, "num_key_value_heads": 4},
    "olmo": {**LLAMA, "model_type": "olmo"},
    "opt": {**LLAMA, "model_type": "opt", "ffn_dim": 128, "word_embed_proj_dim": 64},
    "mamba": {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256},
}


def on_meta(values):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))


def by_name(shape, ending):
    return next(module for module in shape.modules if module.name.endswith(ending))


def test_published_parameter_counts_come_out_exact(shared_folder):
    published = json.loads((shared_folder / "reference" / "model_configs.json").read_text())
    assert len(published) == 28

    for hub_id, facts in published.items():
        assert inventory_of(facts["config"]).num_parameters == facts["num_parameters"], hub_id


# One of each architecture, the smallest: larger ones differ by their sizes alone.
BY_ARCHITECTURE = {str(entry.config["model_type"]): entry.id for entry in reversed(list_catalog())}


@pytest.mark.parametrize("model_id", [*BY_ARCHITECTURE.values(), "meta-llama/Llama-2-70b-hf"])
def test_the_catalogue_is_of_one_mind_with_the_architecture(home, model_id):
    shape = module_inventory(ModelConfig(id=model_id), home)

    entry = find_in_catalog(model_id)
    assert (shape.num_parameters, shape.has_stacked_experts) == (entry.parameters, entry.stacked_experts)


def test_an_empty_home_knows_the_inventories_of_the_catalogue(home):
    with zipfile.ZipFile(SHIPPED) as archive:
        if archive.comment.decode() != importlib.metadata.version("transformers"):
            pytest.skip("made with another transformers, whose inventories may differ")
    small = find_in_catalog("HuggingFaceTB/SmolLM2-135M-Instruct")

    inventories = [known_inventory(ModelConfig(id=entry.id), home) for entry in list_catalog()]

    missing = [entry.id for entry, shape in zip(list_catalog(), inventories, strict=True) if shape is None]
    assert missing == [], "run `python -m tests.models.make_inventories`"
    assert [shape.num_parameters for shape in inventories] == [entry.parameters for entry in list_catalog()]
    assert known_inventory(ModelConfig(id=small.id), home) == inventory_of(small.config)


@pytest.mark.parametrize("values", SMALL_CONFIGS.values(), ids=SMALL_CONFIGS.keys())
def test_every_parameter_belongs_to_one_module(values):
    shape = inventory_of(values)
    model = on_meta(values)

    assert shape.num_parameters == model.num_parameters()
    assert shape.architecture == type(model).__name__
    names = [module.name for module in shape.modules]
    assert len(set(names)) == len(names)
    for module in shape.modules:
        real = model.get_submodule(module.name)
        assert module.class_name == type(real).__name__
        own = sum(parameter.numel() for parameter in real.parameters(recurse=False))
        assert module.parameters == (0 if module.tied_to else own), module.name


@pytest.mark.parametrize("values", SMALL_CONFIGS.values(), ids=SMALL_CONFIGS.keys())
def test_what_is_quantizable_is_what_bitsandbytes_replaces(values):
    model = on_meta(values)
    excluded_names = get_keys_to_not_convert(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        replace_with_bnb_linear(
            model, modules_to_not_convert=excluded_names, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
        )
    replaced = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}

    assert {module.name for module in inventory_of(values).modules if module.is_quantizable} == replaced


def test_tied_embeddings_are_counted_once():
    tied = inventory_of({**LLAMA, "tie_word_embeddings": True})
    untied = inventory_of({**LLAMA, "tie_word_embeddings": False})

    assert untied.num_parameters - tied.num_parameters == 256 * 64
    head = by_name(tied, "lm_head")
    assert (head.tied_to, head.parameters, head.is_output_head) == ("model.embed_tokens", 0, True)
    assert (tied.tie_word_embeddings, untied.tie_word_embeddings) == (True, False)


def test_grouped_query_attention_shows_in_its_projections():
    shape = inventory_of(LLAMA)

    assert (shape.num_key_value_heads, shape.head_dim) == (2, 16)
    assert inventory_of(SMALL_CONFIGS["falcon"]).num_key_value_heads == 1
    assert by_name(shape, "0.self_attn.k_proj").out_features == 32
    assert shape.linear_names() == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_gpt2_has_conv1d_learned_positions_and_dropout():
    shape = inventory_of(GPT2)

    fused = by_name(shape, "h.0.attn.c_attn")
    assert (fused.kind, fused.in_features, fused.out_features, fused.has_bias) == ("conv1d", 48, 144, True)
    assert (shape.hidden_size, shape.num_hidden_layers, shape.intermediate_size) == (48, 3, 192)
    assert (shape.gated_mlp, shape.rotary, shape.max_position_embeddings) == (False, False, 128)
    assert (shape.embedding_dropout, shape.hidden_dropout, shape.attention_dropout) == (0.1, 0.1, 0.1)


def test_phi3_has_one_fused_projection_for_queries_keys_and_values():
    shape = inventory_of(SMALL_CONFIGS["phi3"])

    assert by_name(shape, "0.self_attn.qkv_proj").out_features == 64 + 2 * 32
    assert by_name(shape, "0.mlp.gate_up_proj").out_features == 256
    assert shape.gated_mlp


@pytest.mark.parametrize(("name", "inner"), [("mixtral", 128), ("qwen2_moe", 32), ("gpt_oss", 128)])
def test_experts_are_one_module_of_stacked_weights(name, inner):
    shape = inventory_of(SMALL_CONFIGS[name])

    experts = by_name(shape, "0.mlp.experts")
    assert (shape.num_experts, shape.moe_intermediate_size) == (4, inner)
    assert (experts.kind, experts.in_features, experts.out_features) == ("experts", 64, inner)
    assert not experts.is_quantizable
    assert sorted(experts.bare_parameters["down_proj"]) == sorted((4, 64, inner))
    assert any(module.kind == "router" for module in shape.modules)


def test_layers_that_differ_are_listed():
    shape = inventory_of({**SMALL_CONFIGS["gemma2"], "sliding_window": 32})

    assert shape.layer_types == ("sliding_attention", "full_attention")
    assert shape.sliding_window == 32
    assert (shape.final_logit_softcapping, shape.attn_logit_softcapping) == (30.0, 50.0)
    assert shape.hidden_act == "gelu_pytorch_tanh"


def test_norms_without_weights_are_listed_too():
    norms = [module for module in inventory_of(SMALL_CONFIGS["olmo"]).modules if module.kind == "norm"]

    assert len(norms) == 5
    assert all(norm.parameters == 0 for norm in norms)


NONSENSE = {
    "nothing": {},
    "no model type": {"hidden_size": 64},
    "model type of a wrong kind": {"model_type": ["llama"]},
    "unknown model type": {**LLAMA, "model_type": "own_thing"},
    "no language model": {**LLAMA, "model_type": "vit"},
    "no hidden size": {key: value for key, value in LLAMA.items() if key != "hidden_size"},
    "hidden size null": {**LLAMA, "hidden_size": None},
    "no layers": {key: value for key, value in LLAMA.items() if key != "num_hidden_layers"},
    "zero layers": {**LLAMA, "num_hidden_layers": 0},
    "a billion layers": {**LLAMA, "num_hidden_layers": 10**9},
    "huge hidden size": {**LLAMA, "hidden_size": 10**12},
    "negative hidden size": {**LLAMA, "hidden_size": -64},
    "fractional hidden size": {**LLAMA, "hidden_size": 64.5},
    "hidden size in words": {**LLAMA, "hidden_size": "large"},
    "infinite vocabulary": {**LLAMA, "vocab_size": float("inf")},
    "empty vocabulary": {**LLAMA, "vocab_size": 0},
    "zero heads": {**LLAMA, "num_attention_heads": 0},
    "heads that do not divide": {**LLAMA, "hidden_size": 65, "num_attention_heads": 7},
    "a million experts": {**SMALL_CONFIGS["mixtral"], "num_local_experts": 10**6},
    "unknown activation": {**LLAMA, "hidden_act": "own"},
    "unknown rope": {**LLAMA, "rope_scaling": {"rope_type": "own"}},
}


@pytest.mark.parametrize("values", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_gives_a_message_and_no_number(values):
    with pytest.raises(ModelError) as error_info:
        inventory_of(values)

    assert error_info.value.what.endswith(".")
    assert error_info.value.fix.endswith(".")
    assert "\n" not in str(error_info.value)
    assert "loratory-config" not in str(error_info.value)  # the place where it was read is no one's business


def test_a_folder_with_only_a_configuration_is_enough(home, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))

    assert module_inventory(ModelConfig(id=str(tmp_path)), home) == inventory_of(LLAMA)


def test_the_inventory_of_a_saved_model_counts_its_real_parameters(home, tiny_model_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)

    assert module_inventory(ModelConfig(id=str(tiny_model_folder)), home).num_parameters == model.num_parameters()


def test_an_inventory_is_made_once_and_kept_on_disk(home, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    model = ModelConfig(id=str(tmp_path))
    first = module_inventory(model, home)
    monkeypatch.setattr(inventory, "inventory_of", lambda _: pytest.fail("it was built again"))

    assert module_inventory(model, home) == first
    assert (
        cached_inventory({**architecture_values(model, home), "transformers_version": "9", "dtype": "x"}, home) == first
    )
    assert cached_inventory({**LLAMA, "vocab_size": 257}, home) is None


def test_what_is_known_is_reported_without_building_and_without_a_network(home, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    model = ModelConfig(id=str(tmp_path))
    assert known_inventory(model, home) is None
    shape = module_inventory(model, home)
    assert known_inventory(model, home) == shape
    assert known_inventory(ModelConfig(id="org/model"), home) is None
    assert known_inventory(ModelConfig(id="x" * 400), home) is None


def test_a_damaged_cache_is_rebuilt(home, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    model = ModelConfig(id=str(tmp_path))
    first = module_inventory(model, home)
    (cached,) = (home.cache / "inventory").iterdir()
    cached.write_bytes(cached.read_bytes()[:100])

    assert module_inventory(model, home) == first


def model_details(model, home):
    description = ModelDetails.from_shape(model.id, module_inventory(model, home), find_in_catalog(model.id))
    return complete_details(description, model, home)


def test_details_tell_what_a_folder_holds(home, tiny_model_folder):
    details = model_details(ModelConfig(id=str(tiny_model_folder)), home)

    assert (details.name, details.architecture) == (tiny_model_folder.name, "LlamaForCausalLM")
    assert details.dtype == "float32"
    assert details.tokenizer_tokens == details.vocab_size
    assert details.special_tokens["eos"] == "<|im_end|>"
    assert "<|im_start|>" in details.chat_template
    assert details.linear_names[0] == "q_proj"
    assert details.size_bytes == (tiny_model_folder / "model.safetensors").stat().st_size
    assert details.tokenizer_missing is None


def test_the_licence_of_a_folder_is_read_from_its_card(home, tiny_model_folder, tmp_path):
    for path in tiny_model_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    model = ModelConfig(id=str(tmp_path))
    assert model_details(model, home).license is None

    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# A card\n")
    assert model_details(model, home).license == "mit"

    (tmp_path / "README.md").write_text("---\nlicense: !!python/object:os.system\n---\n")
    assert model_details(model, home).license is None


def test_a_model_out_of_reach_is_described_where_the_catalogue_has_it(home):
    details = model_details(ModelConfig(id="Qwen/Qwen3-8B"), home)

    assert (details.parameters, details.license) == (8_190_735_360, "apache-2.0")
    assert "HF_HUB_OFFLINE" in details.tokenizer_missing
    assert details.chat_template is None
    with pytest.raises(HubUnreachableError):
        model_details(ModelConfig(id="org/model"), home)


def test_the_demo_model_is_not_fetched_to_be_described(home, monkeypatch):
    monkeypatch.setattr("loratory.engine.models.source.prepare_demo", lambda *_: pytest.fail("it was fetched"))

    assert "not on this machine yet" in model_details(ModelConfig(id="smollm2-135m-instruct"), home).tokenizer_missing
