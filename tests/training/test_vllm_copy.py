"""Answers of a second copy in vLLM, by a stand-in that reads the adapter as vLLM does and samples as it says it does."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import ConfigError
from tests.training.rollout_rows import make_prompts, make_rollouts

END = 2


class StandIn:
    """`vllm.LLM` as far as it is called; answers one token at a time, without a cache."""

    def __init__(self, model: str, **options: Any) -> None:
        self.base, self.options, self.is_awake = model, options, True
        self.calls: list[tuple[Any, Any]] = []

    def sleep(self, level: int) -> None:
        assert level == 1  # its weights stay, in the computer's memory
        self.is_awake = False

    def wake_up(self) -> None:
        self.is_awake = True

    def generate(self, prompts: Any, settings: Any, *, use_tqdm: bool, lora_request: Any) -> list[Any]:
        assert self.is_awake
        assert not use_tqdm
        self.calls.append((settings, lora_request))
        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=self.options["dtype"])
        model = PeftModel.from_pretrained(base, lora_request.path).eval()
        generator = torch.Generator().manual_seed(settings.seed)
        outputs = []
        for prompt in prompts:
            ids = [self._complete(model, prompt["prompt_token_ids"], settings, generator) for _ in range(settings.n)]
            outputs.append(SimpleNamespace(outputs=ids))
        return outputs

    def _complete(self, model: Any, prompt: list[int], settings: Any, generator: torch.Generator) -> Any:
        tokens: list[int] = []
        values: list[dict[int, Any]] = []
        while len(tokens) < settings.max_tokens and not (tokens and tokens[-1] in settings.stop_token_ids):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
            log_probabilities = torch.log_softmax(logits / (settings.temperature or 1), -1)
            token = int(torch.multinomial(log_probabilities.exp(), 1, generator=generator))
            if not settings.temperature:
                token = int(logits.argmax())
            tokens.append(token)
            values.append({token: SimpleNamespace(logprob=float(log_probabilities[token]))})
        return SimpleNamespace(token_ids=tuple(tokens), logprobs=values)


@pytest.fixture
def copies(monkeypatch):
    """Install the stand-in; return the copies that are made of models."""
    llms: list[StandIn] = []

    def make(*arguments: Any, **options: Any) -> StandIn:
        llms.append(StandIn(*arguments, **options))
        return llms[-1]

    vllm: Any
    request: Any
    vllm, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.LLM, vllm.SamplingParams = make, SimpleNamespace
    request.LoRARequest = lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return llms


def test_the_copy_answers_with_the_adapter_of_each_step(tmp_path, home, tiny_model_folder, copies):
    training = {"generation": "vllm", "num_train_epochs": 2, "learning_rate": 1e-2, "temperature": 0.8}
    tiny = make_rollouts(tiny_model_folder, home, make_prompts(8), training=training)

    tiny.trainer.train()

    (copy,) = copies
    assert not copy.is_awake
    assert copy.options["max_lora_rank"] == 8
    assert copy.options["trust_remote_code"] is False
    assert copy.options["load_format"] == "safetensors"
    settings, adapters = zip(*copy.calls, strict=True)
    assert len(copy.calls) == 4
    assert [each.number for each in adapters] == [1, 2, 3, 4]  # vLLM keeps what it has read under a number
    assert {(each.n, each.temperature, each.max_tokens) for each in settings} == {(4, 0.8, 12)}
    assert len({each.seed for each in settings}) == 4
    # Log-probabilities of the copy are those of the trainer's passes: the adapter is the one of the step.
    assert all(log.metrics["sampling/sampling_logp_difference/mean"] < 1e-3 for log in tiny.steps)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter": {"method": "ia3"}}, "vLLM takes only LoRA that trains its two matrices alone; set own."),
        ({"adapter": {"use_dora": True}}, "vLLM takes only LoRA that trains its two matrices alone; set own."),
        ({"model": {"id": "tiny", "quantization": "nf4"}}, "vLLM takes no quantized base that trains; set own."),
    ],
)
def test_what_it_cannot_load_is_refused(changes, reason):
    mapping = {
        "model": {"id": "tiny"}, "dataset": {"source": "rows.jsonl"},
        "training": {"objective": "grpo", "generation": "vllm", "rewards": [{"scorer": "equals"}]},
    }  # fmt: skip
    with pytest.raises(ConfigError) as refusal:
        config_from_mapping(mapping | changes)

    assert [problem.message for problem in refusal.value.problems] == [reason]
