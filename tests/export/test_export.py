"""What is exported is complete, is the run's own, tells nothing of this machine, and is verified."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.target import plan_load
from loratory.engine.config.results import ExportConfig
from loratory.engine.errors import ModelError, StorageError
from loratory.engine.export.contract import ExportRequest
from loratory.engine.export.folder import staged_folder
from loratory.engine.export.job import ExportJob
from loratory.engine.hardware.device_job import ModelInUse, models_in_use
from loratory.engine.hardware.lease import LeaseBook
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.processes.messages import CancelledRequestError
from tests.chat.tiny_adapters import lora, make_adapter, prefix_tuning
from tests.export.exporting import ASKED, export, write_run
from tests.recorded_request import RecordedRequest
from tests.replaced_base import record_base, scale_a_tensor, touch
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.usefixtures("few_questions")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "secret-folder" / "tiny-base"
    return make_tiny_model(folder, tie_word_embeddings=False, initializer_range=0.4)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", base, lora())


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(4, 24).reshape(1, -1)).logits


def test_an_adapter_is_the_runs_own_and_loads_with_peft_alone(home, run, base, tmp_path):
    result = export(home, run, tmp_path / "out", kind="adapter")

    names = {file.name for file in result.files}
    assert names == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    first = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "adapter")
    assert torch.equal(logits(again), logits(first))
    assert result.verified.passed
    assert (result.verified.largest_logit_difference, result.verified.equal_answers) == (0.0, ASKED)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_answers_as_the_run(home, run, tmp_path, dtype):
    result = export(home, run, tmp_path / "out", kind="merged", dtype=dtype)

    assert result.verified.passed, result.verified
    if dtype == "float32":  # in 16 bits rounding may turn the near ties of random weights
        assert result.verified.equal_answers == ASKED
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == getattr(torch, dtype)
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == model.config.eos_token_id


@pytest.fixture(scope="module")
def run_of_close_calls(tmp_path_factory) -> Path:
    """Tokens come in pairs that only the adapter tells apart, by less than 16 bits can hold."""
    folder = tmp_path_factory.mktemp("close-calls")
    base = make_tiny_model(folder / "base", tie_word_embeddings=False, initializer_range=0.4)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    head = model.lm_head.weight.data
    head[1::2] = head[: 2 * (len(head) // 2) : 2]
    model.save_pretrained(base)
    run = write_run(folder / "run", base, lora(target_modules=["lm_head"]))
    make_adapter(base, run / "adapter", lora(target_modules=["lm_head"]), scale=1e-4)
    return run


def test_16_bits_that_turn_answers_are_taken_only_where_they_are_asked_for(home, run_of_close_calls, tmp_path):
    sixteen_bits = export(home, run_of_close_calls, tmp_path / "chosen", kind="merged", dtype="bfloat16")
    default = export(home, run_of_close_calls, tmp_path / "proposed", kind="merged")

    assert sixteen_bits.verified.passed
    assert sixteen_bits.verified.equal_answers < ASKED
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "chosen").dtype == torch.bfloat16
    assert default.verified.passed
    assert default.verified.equal_answers == ASKED
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "proposed").dtype == torch.float32
    (text,) = (note for note in default.notes if "float32" in note)
    assert f"it gave {sixteen_bits.verified.equal_answers} of the run's {ASKED} answers" in text


@pytest.fixture
def run_with_templates(run_of_close_calls, tmp_path) -> Path:
    """Return a run whose tokenizer has a chat template for tools as well."""
    run = shutil.copytree(run_of_close_calls, tmp_path / "run-with-templates")
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(run / "adapter")
    assert (run / "adapter" / "additional_chat_templates" / "tool_use.jinja").is_file()
    return run


def test_names_of_files_elsewhere_are_not_taken_along(home, run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    path = run / "adapter" / "tokenizer_config.json"
    elsewhere = {"tokenizer_file": "/home/ann/.cache/tokenizer.json", "merges_file": "merges-of-ann.txt"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **elsewhere}))

    export(home, run, tmp_path / "out", kind="adapter", verify=False)

    assert "ann" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("settings", [{"kind": "adapter"}, {"kind": "merged"}], ids=str)
def test_chat_templates_with_names_are_taken_along(home, run_with_templates, tmp_path, settings):
    result = export(home, run_with_templates, tmp_path / "out", **settings)

    tokenizer = AutoTokenizer.from_pretrained(run_with_templates / "adapter").chat_template
    assert tokenizer.keys() == {"default", "tool_use"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer
    assert "additional_chat_templates/tool_use.jinja" in {file.name for file in result.files}
    if settings["kind"] == "merged":  # it was written twice, and nothing of the first time is left
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_16_bits_are_kept_where_answers_stay_or_no_one_compares(home, base, run_of_close_calls, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "base")
    same = write_run(tmp_path / "run", tmp_path / "base", lora())
    make_adapter(tmp_path / "base", same / "adapter", lora(), scale=0.0)  # changes nothing, so rounding does not

    result = export(home, same, tmp_path / "same", kind="merged")
    unseen = export(home, run_of_close_calls, tmp_path / "unseen", kind="merged", verify=False)

    assert (result.verified.equal_answers, unseen.verified) == (ASKED, None)
    for name in ("same", "unseen"):
        assert AutoModelForCausalLM.from_pretrained(tmp_path / name).dtype == torch.bfloat16


def test_a_quantized_run_is_merged_into_the_unquantized_base_and_reports_it(home, base, tmp_path):
    run = write_run(tmp_path / "run", base, lora(), quantization="nf4")

    result = export(home, run, tmp_path / "out", kind="merged", dtype="float32")

    assert any("trained on nf4 weights and is merged into the unquantized ones" in note for note in result.notes)
    assert result.verified.passed
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_the_tokenizer_ends_answers_where_training_did(home, run, tmp_path):
    export(home, run, tmp_path / "out", kind="merged", verify=False)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    run_tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    messages = [{"role": "user", "content": "hi"}]
    render = {"add_generation_prompt": True, "return_dict": False}
    assert tokenizer.apply_chat_template(messages, **render) == run_tokenizer.apply_chat_template(messages, **render)
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_nothing_tells_where_someone_keeps_files(home, run, tmp_path, kind):
    export(home, run, tmp_path / "out", kind=kind, verify=False)

    for path in (tmp_path / "out").rglob("*"):
        content = path.read_bytes()
        for secret in (b"secret-folder", b"secret-data", b"somebody", str(tmp_path).encode(), str(home.root).encode()):
            assert secret not in content, (path.name, secret)
    assert "rows.jsonl" in (tmp_path / "out" / "README.md").read_text()


def test_a_damaged_export_does_not_pass(home, run, tmp_path, monkeypatch):
    """The check itself is checked: a merge that leaves one layer out is found."""
    import loratory.engine.export.worker.write as write
    from loratory.engine.export.worker.merge import plan_merge

    def forgetful(*arguments):
        merge = plan_merge(*arguments)
        del merge.changes["model.layers.1.mlp.down_proj.weight"]
        return merge

    monkeypatch.setattr(write, "plan_merge", forgetful)

    result = export(home, run, tmp_path / "out", kind="merged", dtype="float32")

    assert not result.verified.passed
    assert result.verified.largest_logit_difference > 1000 * result.verified.allowed_logit_difference


def test_a_folder_that_holds_something_is_left_alone(home, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")

    with pytest.raises(StorageError, match="out exists already and is not empty"):
        export(home, run, tmp_path / "out", kind="adapter")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(StorageError, match="cannot be written"), staged_folder(tmp_path / ("a" * 300)):
        pytest.fail("no folder has such a name")


def test_what_a_killed_export_left_is_swept_and_what_a_living_one_makes_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".out.making-{dead.pid}-aaaa").mkdir()
    (tmp_path / f".out.making-{os.getpid()}-bbbb").mkdir()
    (tmp_path / f".other.making-{dead.pid}-cccc").mkdir()

    with staged_folder(tmp_path / "out") as staging:
        (staging / "file").touch()

    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"out", f".out.making-{os.getpid()}-bbbb", f".other.making-{dead.pid}-cccc"}


@pytest.mark.parametrize("after", [1, 2, 6])
def test_a_stopped_export_leaves_nothing(home, run, tmp_path, after):
    parent = tmp_path / "exports"

    with pytest.raises(CancelledRequestError):
        export(home, run, parent / "out", RecordedRequest(cancel_after=after), kind="merged")
    assert list(parent.iterdir()) == []


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(home, run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("loratory.engine.export.folder.shutil.disk_usage", lambda _: usage)

    with pytest.raises(StorageError, match=r"takes 0\.0 GB; 0\.0 GB are free"):
        export(home, run, tmp_path / "exports" / "out", kind="merged")


def test_a_fully_trained_run_is_taken_away_as_a_model(home, base, tmp_path):
    run = tmp_path / "run"
    make_tiny_model(run / "adapter", seed=5, tie_word_embeddings=False, initializer_range=0.4)
    (run / "config.yaml").write_text(
        f"model: {{id: '{base}'}}\ndataset: {{source: 'sample:x'}}\nadapter: {{method: none}}\n"
    )

    result = export(home, run, tmp_path / "out", kind="merged", dtype="float32")

    assert result.verified.largest_logit_difference == 0.0
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")),
        logits(AutoModelForCausalLM.from_pretrained(run / "adapter")),
    )


def test_what_cannot_be_is_explained(home, base, tmp_path):
    prefix = make_adapter(base, tmp_path / "prefix", prefix_tuning())

    def export_target(target: ChatTarget, kind: str) -> None:
        ExportJob(home, ExportRequest(target=target, folder=tmp_path / "out", settings=ExportConfig(kind=kind))).run()

    with pytest.raises(ModelError, match="Prefix tuning cannot be merged: it learns keys and values"):
        export_target(ChatTarget.of_run(prefix), "merged")
    with pytest.raises(ModelError, match="Nothing to export: this model has no adapter"):
        export_target(ChatTarget.of_model(plan_load(ChatTarget.of_run(prefix)).model), "merged")


@pytest.mark.e2e
def test_a_job_exports_in_a_process_of_its_own_and_is_stopped_without_a_trace(home, run, tmp_path):
    needs: list[ModelInUse] = []
    request = ExportRequest(
        target=ChatTarget.of_run(run),
        folder=tmp_path / "exports" / "out",
        settings=ExportConfig(kind="merged", dtype="float32"),
    )

    result = ExportJob(home, request, choose=lambda _: describe_processor()).run(
        lambda _: needs.extend(models_in_use(home))
    )

    assert result.path == tmp_path / "exports" / "out"
    assert {file.name for file in result.files} == {path.name for path in result.path.iterdir()}
    assert result.verified.passed
    assert LeaseBook(home).holder("cpu") is None
    assert {use.purpose for use in needs} == {"export"}
    assert models_in_use(home) == []
    job = ExportJob(
        home, request.model_copy(update={"folder": tmp_path / "exports" / "again"}), lambda _: describe_processor()
    )
    with pytest.raises(CancelledRequestError):
        job.run(lambda progress: job.stop())
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["out"]


def test_a_base_that_was_replaced_is_not_exported_from(home, base, tmp_path):
    base = Path(shutil.copytree(base, tmp_path / "base"))
    run = write_run(tmp_path / "run", base, lora())
    record_base(run, base)
    touch(base)
    assert export(home, run, tmp_path / "before", kind="adapter").verified.passed

    scale_a_tensor(base)
    with pytest.raises(ModelError, match=r"base have changed since my run .* model\.safetensors differs") as error_info:
        export(home, run, tmp_path / "after", kind="merged")

    assert error_info.value.fix == "Put the original files of the base back, or train again."
    assert not (tmp_path / "after").exists()


def test_a_tied_base_of_which_one_side_was_trained_is_merged_as_two(home, tmp_path):
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=True, initializer_range=0.4)
    run = write_run(tmp_path / "run", base, lora(target_modules=["embed_tokens"]))

    result = export(home, run, tmp_path / "out", kind="merged", dtype="float32")

    assert any(note.startswith("Merged with the whole model in memory") for note in result.notes)
    assert result.verified.passed, result.verified
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_settings_for_generation_that_transformers_would_not_write_are_taken_along(home, tmp_path):
    settings = {"temperature": 0.9, "top_p": 0.6}  # sampling that is not switched on, as in Llama 2
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=False, initializer_range=0.4)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, **settings}))
    run = write_run(tmp_path / "run", base, lora())

    export(home, run, tmp_path / "out", kind="merged", verify=False)

    content = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings.items() <= content.items()
    assert 3 in content["eos_token_id"]
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == content["eos_token_id"]
