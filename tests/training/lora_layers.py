"""Small LoRA models of layers with one input, and what a pass through them gives."""

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import nn

from loratory.engine.training.ops.lora_linear import fuse_lora, lora_linears

WIDTH, WIDE, NARROW = 24, 40, 10


class Layer(nn.Module):
    """Three linear layers with one input, as attention has them, and one behind them."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDE, bias=bias)
        self.k = nn.Linear(WIDTH, NARROW, bias=False)
        self.v = nn.Linear(WIDTH, NARROW, bias=bias)
        self.o = nn.Linear(WIDE, WIDTH, bias=False)

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.o(q * torch.sigmoid(k.sum(-1, keepdim=True)) + v.mean(-1, keepdim=True))


def adapt(dtype=torch.float32, *, trained=torch.float32, **settings):
    torch.manual_seed(0)
    values = {"r": 4, "lora_alpha": 6, "target_modules": ["q", "k", "v", "o"]} | settings
    model = get_peft_model(Layer().to(dtype), LoraConfig(**values))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(trained)
        if "lora_B" in name:  # zero at the start, which would hide half of the gradients
            nn.init.normal_(parameter, std=0.3)
    return model


def fuse(model, *, shared=True):
    count = fuse_lora(model)
    if shared:
        with lora_linears(model).observing(), torch.no_grad():
            model(torch.zeros(2, WIDTH, dtype=model.base_model.model.q.base_layer.weight.dtype))
    return count


def answer(model, x):
    """Return the output, and gradients of trained weights and of the input."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    output = model(x)
    (output.float().square().sum()).backward()
    return output.detach(), {"x": x.grad} | {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def require_equal(got, expected, **tolerance):
    torch.testing.assert_close(got[0], expected[0], **tolerance)
    assert got[1].keys() == expected[1].keys()
    for name, gradient in got[1].items():
        torch.testing.assert_close(
            gradient, expected[1][name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def groups(model):
    return sorted(len(group.layers) for group in lora_linears(model).groups)


def quantize_layers(model, dtype, *, double_quant):
    """Quantize the frozen layers of a model to 4 bits."""
    for name in "qkvo":
        layer = getattr(model.base_model.model, name)
        base = layer.base_layer
        four_bit = Linear4bit(
            base.in_features,
            base.out_features,
            bias=base.bias is not None,
            compute_dtype=dtype,
            compress_statistics=double_quant,
            quant_type="nf4",
        )
        four_bit.load_state_dict(base.state_dict())
        layer.base_layer = four_bit.to(dtype).to("cpu").requires_grad_(False)
        layer.base_layer.support_avx512bf16_for_cpu = False
    return model


def distances(got, expected):
    """Return how far outputs and gradients are from expected ones, by the norms of these."""
    pairs = [(got[0], expected[0]), *((got[1][name], expected[1][name]) for name in expected[1])]
    return [float((a.float().cpu() - b).norm() / b.norm()) for a, b in pairs]


def require_as_near(got, other, expected):
    """Require that an answer in 16 bits is as near to float32 as another one."""
    pairs = zip(distances(got, expected), distances(other, expected), strict=True)
    assert all(own < 1.5 * theirs + 0.002 for own, theirs in pairs)
