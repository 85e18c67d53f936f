"""Adapters of every method of the registry answer in the chat exactly as with PEFT, and merge where the method can."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.worker.weights import BranchWeights
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.results import ExportConfig
from loratory.engine.config.run import AdapterConfig
from loratory.engine.errors import ModelError
from loratory.engine.export.contract import ExportRequest
from loratory.engine.export.job import ExportJob
from loratory.engine.models.source import ModelSource
from loratory.engine.training.methods.registry import method_trainer
from tests.chat.tiny_adapters import attach, load_base, make_adapter
from tests.export.exporting import export, write_run

ADAPTERS = [name for name, method in METHODS.items() if not method.trains_all]
IDS = list(range(4, 24))
SMALL: dict[str, dict[str, object]] = {
    "miss": {"r": 8},
    "oft": {"oft_block_size": 8},
    "p_tuning": {"encoder_hidden_size": 32},
    "vera": {"r": 16},
}

pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning")


def peft_config(base, method):
    model = AutoModelForCausalLM.from_pretrained(base)
    adapter = AdapterConfig(method=method, num_virtual_tokens=5, **SMALL.get(method, {}))
    return method_trainer(method).peft_config(model, adapter, ModelSource(str(base), "tiny"))


@pytest.fixture(params=ADAPTERS)
def method(request):
    return request.param


@pytest.mark.exhaustive(quick=2)
def test_the_chat_answers_with_an_adapter_as_peft_does(method, tiny_model_folder, tmp_path):
    folder = make_adapter(tiny_model_folder, tmp_path / method, peft_config(tiny_model_folder, method), scale=0.1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        base = model(input_ids=ids).logits[0]
        tuned = PeftModel.from_pretrained(model, folder).eval()(input_ids=ids).logits[0, -len(IDS) :]

    branch = attach(load_base(tiny_model_folder, dtype=torch.float32), folder, method)
    chat_logits = branch.logits_at(IDS, range(len(IDS)))
    base_logits = BranchWeights(branch.holder).logits_at(IDS, range(len(IDS)))

    assert torch.allclose(chat_logits, tuned, atol=1e-4)
    assert torch.allclose(base_logits, base, atol=1e-4)
    assert not torch.allclose(tuned, base, atol=1e-2)
    assert branch.virtual_tokens == (0 if METHODS[method].virtual_tokens == "none" else 5)


@pytest.mark.exhaustive(quick=2)
def test_an_export_merges_what_can_be_merged_and_refuses_the_rest(method, home, tiny_model_folder, tmp_path):
    run = write_run(tmp_path / "run", tiny_model_folder, peft_config(tiny_model_folder, method), method)
    if not METHODS[method].mergeable:
        request = ExportRequest(
            target=ChatTarget.of_run(run), folder=tmp_path / "merged", settings=ExportConfig(kind="merged")
        )
        with pytest.raises(ModelError, match="cannot be merged"):
            ExportJob(home, request).run()
        return

    export(home, run, tmp_path / "merged", kind="merged", verify=False, dtype="float32")

    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        expected = PeftModel.from_pretrained(base, run / "adapter").eval()(input_ids=ids).logits
        merged_model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
        assert torch.allclose(merged_model(input_ids=ids).logits, expected, atol=1e-3)
