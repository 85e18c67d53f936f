"""Chat, evaluation and export on a GPU: the answers of the processor in float32, and memory that returns."""

import json

import pytest
import torch

from loratory.engine.chat.contract import ChatRequest, ChatTarget
from loratory.engine.chat.session import ChatSession
from loratory.engine.chat.target import plan_load
from loratory.engine.chat.worker.weights import ModelSpec, Weights
from loratory.engine.config.results import SamplingConfig
from loratory.engine.data.conversation import Message
from loratory.engine.hardware.processor import describe_processor
from tests.chat.tiny_adapters import ia3, lora, prefix_tuning
from tests.evaluation.conftest import evaluate, order_of, write_run
from tests.export.exporting import export
from tests.gpu.cuda_training import the_gpu
from tests.tiny_model import make_tiny_model
from tests.training.worker_runs import write_questions
from tests.waiting import wait_until

pytestmark = pytest.mark.gpu

ADAPTERS = {"lora": lora(), "ia3": ia3(), "prefix_tuning": prefix_tuning()}
IDS = list(range(4, 44))
SECONDS_TO_RETURN_MEMORY = 30


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_model(
        tmp_path_factory.mktemp("gpu-base") / "base", tie_word_embeddings=False, initializer_range=0.1
    )


@pytest.fixture(scope="module")
def run_of(base, tmp_path_factory):
    """Make the folder of a finished run of a method, with some precision and quantization."""
    root = tmp_path_factory.mktemp("gpu-runs")
    data = write_questions(root / "questions.jsonl", 60)

    def make(method, quantization="none", dtype="float32"):
        folder = root / f"{method}-{quantization}-{dtype}"
        if not folder.exists():
            write_run(folder, base, data, ADAPTERS[method], method, quantization=quantization, compute_dtype=dtype)
        return folder

    return make


def logits_of(run, base, device, dtype):
    """Return the logits after each token of a fixed text, of base and tuned."""
    plan = plan_load(ChatTarget.of_run(run))
    weights = Weights(plan, ModelSpec(base, "tiny", device, dtype), lambda _: None)
    with torch.inference_mode():
        return {name: weights.branch(name).logits_at(IDS, range(len(IDS))).cpu() for name in ("base", "tuned")}


@pytest.mark.parametrize("method", ADAPTERS)
def test_base_and_tuned_answer_as_on_the_processor(method, run_of, base):
    run = run_of(method)

    expected = logits_of(run, base, describe_processor(), torch.float32)
    got = logits_of(run, base, the_gpu(), torch.float32)

    assert not torch.allclose(expected["base"], expected["tuned"], rtol=1e-2, atol=1e-2)
    for branch, logits in expected.items():
        torch.testing.assert_close(got[branch], logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_weights_answer_as_on_the_processor(quantization, run_of, base, show):
    run = run_of("lora", quantization)

    expected = logits_of(run, base, describe_processor(), torch.float32)
    got = logits_of(run, base, the_gpu(), torch.float32)

    errors = {branch: float((got[branch] - logits).norm() / logits.norm()) for branch, logits in expected.items()}
    show(errors=errors)
    assert all(error < 0.05 for error in errors.values())  # kernels round a few numbers to another of the 16 or 256


@pytest.mark.e2e
def test_a_conversation_gives_its_memory_back_when_it_is_unloaded(home, run_of):
    before = the_gpu().free_bytes
    session = ChatSession(home)
    try:
        chat_model = session.load(ChatTarget.of_run(run_of("lora", "nf4", "auto")))
        question = ChatRequest(
            messages=(Message("user", "What is a rank?"),),
            branches=("base", "tuned"),
            sampling=SamplingConfig(temperature=0, max_new_tokens=12),
        )
        chunks = list(session.stream(question))
        during = the_gpu().free_bytes
    finally:
        session.unload()

    assert chat_model.device == the_gpu().name
    assert {chunk.branch for chunk in chunks} == {"base", "tuned"}
    assert during < before
    wait_until(lambda: the_gpu().free_bytes >= before - 2**27, SECONDS_TO_RETURN_MEMORY)


@pytest.mark.parametrize("method", ADAPTERS)
def test_held_out_losses_are_those_of_the_processor(method, home, run_of):
    run = run_of(method)

    def losses(device):
        return {branch: loss.loss for branch, loss in evaluate(home, order_of(run, device)).losses.items()}

    expected, got = losses(describe_processor()), losses(the_gpu())

    assert got.keys() == expected.keys() == {"base", "tuned"}
    assert got == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_merged_export_from_a_gpu_answers_as_the_run_does(quantization, home, run_of, tmp_path):
    run, folder = run_of("lora", quantization), tmp_path / "merged"

    verification = export(home, run, folder, device=the_gpu(), kind="merged", dtype="float32").verified

    assert verification is not None
    assert verification.passed, verification
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
