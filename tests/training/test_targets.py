"""Targets that match something are passed on, others are refused with what there is."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from loratory.engine.config.run import AdapterConfig
from loratory.engine.errors import ConfigError
from loratory.engine.training.methods.base import choose_ia3_targets, choose_saved_modules, choose_targets


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder)


def test_names_and_all_linear_pass(model):
    assert choose_targets(model, AdapterConfig()) == "all-linear"
    assert choose_targets(model, AdapterConfig(target_modules=("q_proj", "v_proj"))) == ["q_proj", "v_proj"]


def test_an_expression_becomes_the_names_that_it_matches(model):
    names = choose_targets(model, AdapterConfig(target_modules=r".*layers\.1\..*(q|v)_proj"))

    assert names == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


def test_one_unknown_name_among_known_ones_is_refused_with_what_exists(model):
    with pytest.raises(ConfigError) as error_info:
        choose_targets(model, AdapterConfig(target_modules=("q_proj", "query")))

    (problem,) = error_info.value.problems
    assert problem.field == "adapter.target_modules"
    assert problem.message.startswith("query matches no module")
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in problem.message


@pytest.mark.parametrize("pattern", ["nothing_like_this", "(unclosed", r"(.*.*)*\1x", "(a+)+$"])
def test_expressions_that_match_nothing_are_broken_or_never_end_are_refused(model, pattern):
    with pytest.raises(ConfigError):
        choose_targets(model, AdapterConfig(target_modules=pattern))


def test_an_expression_that_backtracks_for_ever_is_given_up(model):
    pattern = r"(?:(?:[a-z_0-9]+\.?)+)+!"
    with pytest.raises(ConfigError, match=r"takes too long|matches no module"):
        choose_targets(model, AdapterConfig(target_modules=pattern))


def test_the_output_head_takes_no_adapter(model):
    with pytest.raises(ConfigError, match="modules_to_save"):
        choose_targets(model, AdapterConfig(target_modules=("q_proj", "lm_head")))


def test_ia3_rescales_the_input_of_feed_forward_layers(model):
    chosen = AdapterConfig(method="ia3", target_modules=("k_proj", "v_proj", "down_proj"))
    own = AdapterConfig(method="ia3", target_modules=("k_proj", "up_proj"), feedforward_modules=("up_proj",))

    def ia3_targets(adapter):
        targets = choose_ia3_targets(model, adapter)
        return targets["target_modules"], targets["feedforward_modules"]

    assert ia3_targets(chosen) == (["down_proj", "k_proj", "v_proj"], ["down_proj"])
    assert ia3_targets(own) == (["k_proj", "up_proj"], ["up_proj"])
    assert ia3_targets(AdapterConfig(method="ia3", target_modules=("k_proj",))) == (["k_proj"], [])


def test_ia3_on_every_linear_layer_leaves_the_head_out(model):
    everything = choose_ia3_targets(model, AdapterConfig(method="ia3"))

    assert everything["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert everything["feedforward_modules"] == ["down_proj"]


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe"])
def test_stacked_experts_take_no_adapter_and_naming_them_is_refused(model_type):
    config = AutoConfig.for_model(
        model_type, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=64
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    names = choose_targets(model, AdapterConfig())

    assert {"k_proj", "o_proj", "q_proj", "v_proj"} <= set(names)
    assert not set(names) & {"gate", "gate_proj", "w1", "down_proj"}
    if model_type == "qwen2_moe":
        with pytest.raises(ConfigError, match="experts"):
            choose_targets(model, AdapterConfig(target_modules=r".*shared_expert\.up_proj"))


def test_modules_to_save_are_those_that_were_named(model):
    assert choose_saved_modules(model, AdapterConfig()) is None
    for name in ("embed_tokens", "lm_head", "mlp", "layers.1.self_attn", "model.norm"):
        assert choose_saved_modules(model, AdapterConfig(modules_to_save=(name,))) == [name]


def test_a_name_that_others_end_with_means_itself_alone(model):
    """PEFT compares letters: norm would train every input_layernorm."""
    saved = choose_saved_modules(model, AdapterConfig(modules_to_save=("norm",)))
    peft_model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=saved))

    assert saved == ["model.norm"]
    assert [name for name, p in peft_model.named_parameters() if p.requires_grad and "lora_" not in name] == [
        "base_model.model.model.norm.modules_to_save.default.weight"
    ]
    peft_model.unload()


@pytest.mark.parametrize(
    ("name", "message_part"),
    [
        ("lm_haed", "lm_haed matches no module; this model's are model, embed_tokens, layers, self_attn, q_proj"),
        ("rotary_emb", "has no weights to train"),
    ],
)
def test_modules_to_save_that_cannot_be_are_refused(model, name, message_part):
    with pytest.raises(ConfigError) as error_info:
        choose_saved_modules(model, AdapterConfig(modules_to_save=("lm_head", name)))

    (problem,) = error_info.value.problems
    assert problem.field == "adapter.modules_to_save"
    assert message_part in problem.message


@pytest.mark.parametrize("name", ["down_proj", "mlp"])
def test_quantized_modules_are_not_trained_in_full(name):
    class Linear4bit(torch.nn.Linear):
        """By its name, as bitsandbytes calls it."""

    model = torch.nn.Sequential()
    model.mlp = torch.nn.Sequential()
    model.mlp.down_proj = Linear4bit(4, 4)

    with pytest.raises(ConfigError, match=r"mlp(\.down_proj)? is quantized"):
        choose_saved_modules(model, AdapterConfig(modules_to_save=(name,)))
