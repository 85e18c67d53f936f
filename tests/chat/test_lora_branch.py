"""The quick branch has the bits of PEFT's own layers, in every precision."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from loratory.engine.chat.worker.lora_branches import use_plain_branches

PRECISIONS = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "nf4": {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)},
    "int8": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
}


def adapted_layer(folder, precision, adapter_dtype, **lora):
    model = AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.bfloat16} | PRECISIONS[precision]).eval()
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["down_proj"], init_lora_weights=False, **lora)
    model = get_peft_model(model, config, autocast_adapter_dtype=False)
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    for part in (layer.lora_A, layer.lora_B):
        part["default"].to(adapter_dtype)
    return layer


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_the_bits_are_those_of_peft(precision, adapter_dtype, tokens, tiny_model_folder):
    layer = adapted_layer(tiny_model_folder, precision, adapter_dtype)
    x = torch.randn(1, tokens, layer.in_features).to(torch.float32 if precision == "float32" else torch.bfloat16)
    of_base = layer.base_layer(x)

    use_plain_branches([layer])
    expected = type(layer).forward(layer, x)

    assert layer.lora_A["default"].weight.dtype == torch.float32
    assert layer.forward.__func__ is not type(layer).forward
    assert not torch.equal(expected, of_base)
    assert torch.equal(layer(x), expected)
    layer._disable_adapters = True
    assert torch.equal(layer(x), of_base)


@pytest.mark.filterwarnings("ignore:.*lora_bias")  # the layer has no bias to merge into
@pytest.mark.parametrize("variant", [{"use_dora": True}, {"lora_bias": True}], ids=str)
@torch.inference_mode()
def test_other_kinds_of_lora_keep_the_pass_of_peft(variant, tiny_model_folder):
    layer = adapted_layer(tiny_model_folder, "float32", torch.float32, **variant)
    x = torch.randn(1, 3, layer.in_features)
    expected = layer(x)

    use_plain_branches([layer])

    assert torch.equal(layer(x), expected)
