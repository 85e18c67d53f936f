"""GGUF files with a stand-in for the converter: its arguments, the files of the export, and errors."""

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoTokenizer

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.config.load import config_to_yaml
from loratory.engine.config.results import ExportConfig
from loratory.engine.errors import ModelError
from loratory.engine.export.contract import ExportRequest, ExportResult
from loratory.engine.export.gguf.llama_cpp import CHECKOUT_VARIABLE, find_converter
from loratory.engine.export.job import ExportJob
from loratory.engine.export.worker.verify import ModelDifference
from loratory.engine.processes.messages import CancelledRequestError
from loratory.engine.runs.run import RunFolder
from tests.chat.tiny_adapters import lora, make_adapter, prefix_tuning
from tests.export.exporting import ASKED, write_run
from tests.export.exporting import export as export_kind
from tests.export.stand_in_converter import make_checkout
from tests.recorded_request import RecordedRequest
from tests.tiny_model import make_tiny_model


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch):
    monkeypatch.setattr("loratory.engine.export.worker.main.has_llama_cpp", lambda: False)
    monkeypatch.delenv(CHECKOUT_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny-base", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", base, lora())


@pytest.fixture
def checkout(tmp_path) -> Path:
    return make_checkout(tmp_path / "llama.cpp")


def export(home, run: Path, folder: Path, checkout: Path, request=None, **settings: Any) -> ExportResult:
    return export_kind(home, run, folder, request, llama_cpp=checkout, kind="gguf", **settings)


def test_the_folder_holds_the_file_its_modelfile_and_a_card(home, run, tmp_path, checkout):
    result = export(home, run, tmp_path / "My model", checkout, gguf_type="f16")

    assert {file.name for file in result.files} == {"My-model-f16.gguf", "Modelfile", "README.md"}
    modelfile = (tmp_path / "My model" / "Modelfile").read_text()
    assert modelfile.startswith("# ollama create my-model -f Modelfile\nFROM ./My-model-f16.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    assert 'TEMPLATE """{{ $last := "" }}' in modelfile
    assert result.verified is None
    # Two layers of seven matrices, the embedding and the head.
    assert any("Checked: 16 tensors agree with the merged model" in note for note in result.notes)


@pytest.mark.parametrize("prompts", [("Be brief.", "Be brief."), ("Be brief.", "Be long."), None])
def test_the_modelfile_has_the_system_prompt_that_all_rows_share(home, run, tmp_path, prompts, checkout):
    run, data = Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "rows.jsonl"
    for prompt in prompts or ():
        turns = [("system", prompt), ("user", "Yes?"), ("assistant", "Yes.")]
        row = {"messages": [{"role": role, "content": text} for role, text in turns]}
        data.open("a").write(json.dumps(row) + "\n")
    config = RunFolder(run).read_config()
    dataset = config.dataset.model_copy(update={"source": str(data)})
    (run / "config.yaml").write_text(config_to_yaml(config.model_copy(update={"dataset": dataset})))

    export(home, run, tmp_path / "out", checkout, gguf_type="f16", verify=False)

    is_shared = prompts is not None and len(set(prompts)) == 1
    assert ('SYSTEM """Be brief."""' in (tmp_path / "out" / "Modelfile").read_text()) is is_shared


def test_a_run_with_several_chat_templates_is_compared_by_the_default_one(home, run, tmp_path, checkout):
    run = shutil.copytree(run, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(run / "adapter")

    result = export(home, run, tmp_path / "out", checkout, keep_merged=True)

    assert any("so do the vocabulary and the chat template" in note for note in result.notes), result.notes
    assert "out-f16.gguf" in {file.name for file in result.files}  # auto: the tiny base is held in float32
    assert (tmp_path / "out" / "merged" / "additional_chat_templates" / "tool_use.jinja").is_file()


def test_the_converter_gets_the_starts_of_prompts_and_no_foreign_code(home, tmp_path, checkout):
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=False)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    run = write_run(tmp_path / "run", base, lora())

    export(home, run, tmp_path / "out", checkout, gguf_type="f16", keep_merged=True)

    received = json.loads((checkout / "seen.json").read_text())
    assert received["argv"][:3] == ["--outtype", "f16", "--outfile"]
    # The tiny template opens turns with <|im_start|>, which is also the tokenizer's bos.
    assert received["tokenizer_config"]["add_bos_token"] is True
    assert "auto_map" not in received["config"]
    merged = tmp_path / "out" / "merged"
    assert "add_bos_token" not in json.loads((merged / "tokenizer_config.json").read_text())
    assert json.loads((merged / "config.json").read_text())["dtype"] == "float16"


def test_a_file_that_holds_something_else_is_noticed_without_llama_cpp(home, run, tmp_path):
    result = export(home, run, tmp_path / "out", make_checkout(tmp_path / "llama.cpp", "forgetful"), gguf_type="f16")

    assert any("model.layers.1.mlp.down_proj.weight differs" in note for note in result.notes)


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("ERROR:hf-to-gguf:Model MysteryForCausalLM is not supported", "does not support the architecture .*Mystery"),
        ("NotImplementedError: BPE pre-tokenizer was not recognized", "BPE pre-tokenizer was not recognized"),
        ("ModuleNotFoundError: No module named 'sentencepiece'", "lacks the Python package sentencepiece"),
        ("OSError: cannot read /home/somebody/secret/model.bin", r"\(OSError: cannot read model.bin\)"),
    ],
)
def test_what_the_converter_could_not_do_is_reported_with_a_message(home, run, tmp_path, output, message):
    checkout = make_checkout(tmp_path / "llama.cpp", f"say:{output}")

    with pytest.raises(ModelError, match=message) as error_info:
        export(home, run, tmp_path / "exports" / "out", checkout)
    assert "secret" not in str(error_info.value)
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize(("times", "passed"), [(1.05, True), (1.2, False)])
@pytest.mark.usefixtures("few_questions")
def test_perplexity_makes_the_verdict_on_a_quantized_file(home, run, tmp_path, monkeypatch, times, passed, checkout):
    quantized: list[tuple[str, int]] = []
    requests: list[Any] = []

    def quantize(question, params, log_file, on_progress):
        assert question == "quantize"
        on_progress({"bytes": 5})
        quantized.append((Path(params["source"]).name, params["file_type"]))
        shutil.copyfile(params["source"], params["target"])

    def loss(gguf, rows, log_file, report):
        requests.append(rows)
        return math.log(times)  # the run's own is 0

    monkeypatch.setattr("loratory.engine.export.worker.main.has_llama_cpp", lambda: True)
    monkeypatch.setattr("loratory.engine.export.gguf.llama_cpp.has_llama_cpp", lambda: True)
    monkeypatch.setattr("loratory.engine.export.worker.gguf.call_llama_cpp", quantize)
    monkeypatch.setattr("loratory.engine.export.worker.main.mean_loss", lambda branch, rows, export: 0.0)
    monkeypatch.setattr(
        "loratory.engine.export.worker.main.compare_answers", lambda *_: ModelDifference(7.2, 0, ASKED, None)
    )
    monkeypatch.setattr("loratory.engine.export.worker.main.mean_loss_of_gguf", loss)

    result = export(home, run, tmp_path / "out", checkout, gguf_type="q4_k_m")

    assert quantized == [("f16.gguf", 15)]
    assert {file.name for file in result.files} == {"out-q4_k_m.gguf", "Modelfile", "README.md"}
    assert result.verified.passed is passed
    assert result.verified.allowed_logit_difference is None
    assert requests[0].on == "general text"  # the data of this run is not here
    if passed:
        assert result.verified.perplexity.summary.startswith("1.00 → 1.05 (+5.0%) on general text")
        assert "this file: 1.00 → 1.05 (+5.0%)" in (tmp_path / "out" / "README.md").read_text()
    else:
        assert "another perplexity" in result.verified.difference


def test_an_unknown_architecture_is_refused_before_anything_is_merged(home, base, tmp_path, checkout):
    gemma = make_tiny_model(tmp_path / "gemma", model_type="gemma", tie_word_embeddings=True)
    run = write_run(tmp_path / "run", gemma, lora())
    request = RecordedRequest()

    with pytest.raises(ModelError, match="does not support the architecture of gemma, GemmaForCausalLM"):
        export(home, run, tmp_path / "out", checkout, request)
    assert not any("merged weights" in progress["message"] for progress in request.progress_log)


def test_a_stopped_conversion_ends_the_converter(home, run, tmp_path):
    class StopsWhileConverting(RecordedRequest):
        def is_cancelled(self) -> bool:
            return any("GGUF" in progress["message"] for progress in self.progress_log)

    checkout = make_checkout(tmp_path / "llama.cpp", "slow")

    with pytest.raises(CancelledRequestError):
        export(home, run, tmp_path / "exports" / "out", checkout, StopsWhileConverting())
    script = str(checkout / "convert_hf_to_gguf.py")
    assert not any(script in (process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    assert list((tmp_path / "exports").iterdir()) == []


def test_the_converter_is_looked_for_where_it_was_pointed_at(tmp_path, monkeypatch, checkout):
    assert find_converter(checkout).argv[-1] == str(checkout / "convert_hf_to_gguf.py")
    monkeypatch.setenv(CHECKOUT_VARIABLE, str(checkout))
    assert find_converter().folder == checkout
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty is not a llama.cpp checkout"):
        find_converter(tmp_path / "empty")


def test_a_missing_extra_and_prefix_tuning_are_reported_before_anything_starts(home, run, base, tmp_path, monkeypatch):
    def export_gguf(folder: Path) -> None:
        settings = ExportConfig(kind="gguf")
        ExportJob(
            home, ExportRequest(target=ChatTarget.of_run(folder), folder=tmp_path / "out", settings=settings)
        ).run()

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"not installed. Install it with `pip install 'loratory\[gguf\]'`"):
        export_gguf(run)
    with pytest.raises(ModelError, match="Prefix tuning cannot be merged"):
        export_gguf(make_adapter(base, tmp_path / "prefix", prefix_tuning()))
