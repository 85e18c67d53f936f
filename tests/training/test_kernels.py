"""Third-party kernels: used where wanted and available, else with a reason, and only after their results are compared."""

import functools
import importlib.util
import sys
import types
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from loratory.engine.config.optimizations import VARIABLE
from loratory.engine.training import kernels
from tests.tiny_model import make_tiny_model
from tests.training import gpu_stand_ins
from tests.training.gpu_stand_ins import use_gpu_paths
from tests.training.tiny_training import make_config, make_rows, make_training, train_tiny


@pytest.fixture
def liger_installed(monkeypatch):
    """Says which packages there are."""

    def set_installed(*names: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in names else None)

    return set_installed


class FakeLiger:
    """Stands in for liger_kernel: `norm` and `rotate` are what it puts into a Llama."""

    def __init__(self, monkeypatch):
        self.applied_settings = []
        self.norm = lambda module, hidden: torch.nn.functional.rms_norm(
            hidden, module.weight.shape, module.weight, module.variance_epsilon
        )
        self.rotate = modeling_llama.apply_rotary_pos_emb
        patches: Any = types.ModuleType("liger_kernel.transformers.monkey_patch")
        patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": object()}
        patches._apply_liger_kernel_to_instance = self.apply
        for name in ("liger_kernel", "liger_kernel.transformers"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, patches.__name__, patches)
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", self.rotate)  # put back after the test

    def apply(self, model, **settings):
        self.applied_settings.append(settings)
        modeling_llama.apply_rotary_pos_emb = self.rotate
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = types.MethodType(self.norm, module)


@pytest.fixture
def liger(monkeypatch, liger_installed):
    monkeypatch.setattr(kernels, "_runs_triton", lambda _device: True)
    liger_installed("liger_kernel")
    return FakeLiger(monkeypatch)


def kernels_of(folder, tmp_path, **sections):
    """Which kernels a short run uses, its losses, and how many norms are no longer the model's own."""
    training = train_tiny(make_config(folder, **{"training": {"max_steps": 3}} | sections), make_rows(12), tmp_path)
    norms = [m for m in training.trainer.model.modules() if type(m).__name__.endswith("RMSNorm")]
    reasons = {name: training.assembly.optimizations[name] for name in ("liger_kernels", "fused_norms")}
    return reasons, training.losses, sum("forward" in vars(norm) for norm in norms)


def test_a_processor_uses_the_models_own_and_notes_torch_compile_alone(tiny_model_folder, tmp_path):
    config = make_config(tiny_model_folder, training={"torch_compile": True, "max_steps": 1})
    training = train_tiny(config, make_rows(8), tmp_path)
    assembly = training.assembly

    assert len(training.losses) == 1
    assert [note.split()[0] for note in assembly.notes] == ["torch.compile"]
    for name in ("fused_loss", "liger_kernels", "fused_norms"):
        assert assembly.optimizations[name] == "needs CUDA"


@pytest.mark.e2e
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_layers_are_compiled_where_they_can_be(checkpointing, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # as a worker has it
    monkeypatch.setenv(VARIABLE, "fused_loss,liger_kernels,fused_norms")
    monkeypatch.setattr(kernels, "_runs_triton", lambda _device: True)
    monkeypatch.setattr(kernels, "_is_installed", lambda package: package == "triton")
    monkeypatch.setattr(kernels, "compile_layers", functools.partial(kernels.compile_layers, backend="aot_eager"))
    settings = {"max_steps": 2, "gradient_checkpointing": checkpointing}
    plain = train_tiny(make_config(tiny_model_folder, training=settings), make_rows(12), tmp_path / "plain")
    settings["torch_compile"] = True
    compiled = train_tiny(make_config(tiny_model_folder, training=settings), make_rows(12), tmp_path / "compiled")

    count = sum(bool(module._compiled_call_impl) for module in compiled.trainer.model.modules())
    reason = "torch.compile is not used: it compiles no layers of LoRA with gradient checkpointing."
    assert (count, compiled.assembly.notes) == ((0, (reason,)) if checkpointing else (2, ()))
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)
    assert compiled.weights().keys() == plain.weights().keys()  # names in checkpoints stay


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["lora", "ia3", "none"])
def test_liger_replaces_everything_but_the_loss(method, tiny_model_folder, tmp_path, liger, monkeypatch):
    monkeypatch.setenv(VARIABLE, "liger_kernels,fused_norms")
    _, losses, own = kernels_of(tiny_model_folder, tmp_path / "own", adapter={"method": method})
    monkeypatch.delenv(VARIABLE)

    reasons, again, replaced = kernels_of(tiny_model_folder, tmp_path / "liger", adapter={"method": method})

    assert liger.applied_settings == [{"cross_entropy": False, "fused_linear_cross_entropy": False}]
    assert reasons == {"liger_kernels": "", "fused_norms": "Liger's norms are used"}
    assert (own, replaced) == (0, 5)
    assert again == pytest.approx(losses, rel=1e-4)


class InPlace(torch.autograd.Function):
    """What a kernel of another person could do: the right output and a wrong gradient."""

    @staticmethod
    def forward(ctx, hidden):
        return hidden.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.5


@pytest.mark.exhaustive
@pytest.mark.parametrize("wrong", ["loss", "gradients", "fails", "rotation"])
def test_kernels_that_change_loss_or_gradients_are_taken_back(wrong, tiny_model_folder, tmp_path, liger):
    right, rotate = liger.norm, liger.rotate
    liger.norm = {
        "loss": lambda module, hidden: right(module, hidden) * 1.5,
        "gradients": lambda module, hidden: right(module, InPlace.apply(hidden)),
        "fails": lambda module, hidden: hidden @ hidden,
        "rotation": right,
    }[wrong]
    if wrong == "rotation":
        liger.rotate = lambda q, k, *rest: rotate(q * 3, k, *rest)

    reasons, _, replaced = kernels_of(tiny_model_folder, tmp_path)

    assert reasons["liger_kernels"] == ("they fail (RuntimeError)" if wrong == "fails" else kernels._DIFFERS)
    assert modeling_llama.apply_rotary_pos_emb is rotate
    assert reasons["fused_norms"] == ""
    assert replaced == 5  # by PyTorch's kernel


@pytest.mark.parametrize("wrong", ["", "losses", "gradients", "no compiler"])
def test_the_fused_loss_is_used_where_it_gives_what_the_reference_gives(
    wrong, tiny_model_folder, tmp_path, monkeypatch
):
    use_gpu_paths(monkeypatch)
    right = gpu_stand_ins.losses_and_gradient_

    def losses_and_gradient_(logits, *rest):
        if wrong == "no compiler":
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")
        losses, factors = right(logits, *rest)
        if wrong == "gradients":
            logits.mul_(2)
        return losses * (2 if wrong == "losses" else 1), factors

    module = sys.modules["loratory.engine.training.ops.triton_loss"]
    monkeypatch.setattr(module, "losses_and_gradient_", losses_and_gradient_)
    if wrong == "losses":
        monkeypatch.setattr(
            module, "losses_of", lambda *arguments: (2 * gpu_stand_ins.CrossEntropy.apply(*arguments), None)
        )

    training = train_tiny(make_config(tiny_model_folder, training={"max_steps": 1}), make_rows(8), tmp_path)

    reason = training.assembly.optimizations["fused_loss"]
    assert reason == {"": "", "no compiler": "they fail (RuntimeError)"}.get(wrong, kernels._DIFFERS)
    assert len(training.losses) == 1


def test_each_reason_not_to_use_liger_is_given(tiny_model_folder, tmp_path, liger, liger_installed, monkeypatch):
    def reason(**training):
        config = make_config(tiny_model_folder, training=training)
        return make_training(config, make_rows(8), tmp_path).assembly.optimizations["liger_kernels"]

    assert reason(use_liger_kernel=False) == "use_liger_kernel is off"
    sys.modules["liger_kernel.transformers.monkey_patch"].MODEL_TYPE_TO_APPLY_LIGER_FN.clear()
    assert reason() == "Liger has none for llama"
    liger_installed()
    assert reason() == "liger-kernel is not installed"
    assert liger.applied_settings == []


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pytorchs_norm_gives_what_the_models_own_gives(family, dtype, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path, model_type=family), dtype=dtype)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    torch.manual_seed(0)
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    for norm in norms:
        norm.weight.data += torch.randn(norm.weight.shape).to(dtype) / 4
    ids = torch.arange(20, 60).view(2, 20)

    def outcome():
        loss = model(ids, labels=ids).loss
        return loss.detach(), torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    expected, expected_gradients = outcome()
    replaced = kernels.fuse_norms(model)
    got, gradients = outcome()

    assert replaced == len(norms)
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=0)
    for own, other in zip(gradients, expected_gradients, strict=True):
        assert own is None or (own - other).norm() <= 3 * tolerance * other.norm() + 1e-5


def test_norms_that_do_more_stay_the_models_own(tmp_path, monkeypatch):
    """Gemma's, which add one to their weight."""
    use_gpu_paths(monkeypatch)
    folder = make_tiny_model(tmp_path / "gemma", model_type="gemma3_text")

    reasons, _, replaced = kernels_of(folder, tmp_path)

    assert (reasons["fused_norms"], replaced) == ("the model has none to replace", 0)


def test_other_dtypes_go_to_the_models_own():
    norm: Any = modeling_llama.LlamaRMSNorm(16)
    norm.weight.data.normal_()
    hidden = torch.randn(3, 16).bfloat16()
    expected = norm(hidden)

    assert kernels.fuse_norms(torch.nn.ModuleList([norm])) == 1
    assert torch.equal(norm(hidden), expected)
