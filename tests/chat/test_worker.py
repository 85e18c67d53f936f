"""What the process does with a question, run here without a process."""

import shutil
from pathlib import Path

import pytest

from loratory.engine.chat.contract import AdapterChoice, ChatRequest, ChatTarget
from loratory.engine.chat.target import LoadRequest, plan_load
from loratory.engine.chat.worker.main import ChatWorker
from loratory.engine.config.load import config_from_mapping, config_to_yaml
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import Message
from loratory.engine.errors import DeviceError, ModelError, RunError
from loratory.engine.hardware.device import Device
from tests.chat.tiny_adapters import ia3, lora, make_adapter
from tests.recorded_request import RecordedRequest
from tests.replaced_base import record_base, scale_a_tensor
from tests.tiny_model import make_tiny_model

CPU = Device("cpu", 0, "Test CPU", 8 * 1024**3, 8 * 1024**3, has_fast_bfloat16=False, cores=1)
QUESTION = (Message("user", "What is a rank?"),)
GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def adapters(tiny_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    return {
        "lora": make_adapter(tiny_model_folder, folder / "lora", lora()),
        "ia3": make_adapter(tiny_model_folder, folder / "ia3", ia3(), seed=2),
    }


@pytest.fixture
def worker(home) -> ChatWorker:
    return ChatWorker(home)


def load(worker: ChatWorker, target: ChatTarget, device: Device = CPU) -> tuple[dict, list[dict]]:
    request = RecordedRequest()
    params = LoadRequest(plan=plan_load(target), device=device).model_dump(mode="json")
    return worker.load(params, request), request.progress_log


def answer(worker: ChatWorker, *branches: str, messages=QUESTION, sampling=GREEDY, cancel_after=None) -> list[dict]:
    request = RecordedRequest(cancel_after)
    chat_request = ChatRequest(messages=messages, branches=branches, sampling=sampling)
    for _ in worker.generate(chat_request.model_dump(mode="json"), request):
        pass
    return request.progress_log


def text_of(chunks: list[dict], branch: str) -> str:
    return "".join(chunk["text"] for chunk in chunks if chunk["branch"] == branch)


def test_loading_tells_what_it_does_and_what_came_of_it(worker, adapters):
    chat_model, messages = load(worker, ChatTarget.of_run(adapters["lora"]))

    assert [progress["phase"] for progress in messages] == ["loading_model", "loading_model", "ready"]
    assert chat_model["method"] == "LoRA"
    assert chat_model["branches"] == ["base", "tuned"]
    assert chat_model["context_length"] == 512
    assert 0 < chat_model["adapter_bytes"] < chat_model["weights_bytes"] / 10


def test_branches_take_turns_token_by_token(worker, adapters):
    load(worker, ChatTarget.of_run(adapters["lora"]))

    chunks = answer(worker, "base", "tuned")

    assert [chunk["branch"] for chunk in chunks] == ["base", "tuned"] * 12
    assert text_of(chunks, "base") != text_of(chunks, "tuned")
    assert text_of(chunks, "base") == text_of(answer(worker, "base"), "base")
    assert text_of(chunks, "tuned") == text_of(answer(worker, "tuned"), "tuned")


@pytest.mark.parametrize("token_count", [0, 5])
def test_a_stop_ends_every_branch_before_the_next_token(worker, adapters, token_count):
    load(worker, ChatTarget.of_run(adapters["lora"]))

    *before, base, tuned = answer(worker, "base", "tuned", cancel_after=2 * token_count)

    assert len(before) == 2 * token_count
    assert (base["branch"], tuned["branch"]) == ("base", "tuned")
    for chunk in (base, tuned):
        assert (chunk["tokens"], chunk["finish_reason"], chunk["done"]) == (token_count, "stopped", True)


def test_a_base_alone_answers_as_the_base_beneath_an_adapter(worker, home, adapters, tiny_model_folder):
    load(worker, ChatTarget.of_run(adapters["lora"]))
    alone = ChatWorker(home)
    chat_model, _ = load(alone, ChatTarget.of_model(ModelConfig(id=str(tiny_model_folder))))

    assert chat_model["branches"] == ["base"]
    assert text_of(answer(alone, "base"), "base") == text_of(answer(worker, "base"), "base")


def test_adapters_are_exchanged_without_loading_the_base_again(worker, adapters):
    load(worker, ChatTarget.of_run(adapters["lora"]))
    base = text_of(answer(worker, "base"), "base")
    chat_model, messages = load(worker, ChatTarget.of_run(adapters["ia3"]))

    assert chat_model["method"] == "IA3"
    assert [progress["phase"] for progress in messages] == ["loading_adapter", "ready"]
    assert text_of(answer(worker, "base"), "base") == base
    assert text_of(answer(worker, "tuned"), "tuned") != base


def test_an_adapter_that_does_not_fit_leaves_nothing_loaded(worker, adapters, tiny_model_folder, tmp_path):
    stranger = make_adapter(make_tiny_model(tmp_path / "deep", num_hidden_layers=4), tmp_path / "stranger", lora())
    load(worker, ChatTarget.of_run(adapters["ia3"]))
    expected = answer(worker, "base", "tuned")
    base = ModelConfig(id=str(tiny_model_folder))

    with pytest.raises(ModelError, match="stranger has weights for"):
        load(worker, ChatTarget(model=base, tuned=AdapterChoice(folder=stranger)))

    with pytest.raises(RunError, match="No model is loaded"):
        answer(worker, "base")
    load(worker, ChatTarget.of_run(adapters["ia3"]))
    again = answer(worker, "base", "tuned")  # a slow machine divides a text into other chunks
    assert [text_of(again, branch) for branch in ("base", "tuned")] == [
        text_of(expected, branch) for branch in ("base", "tuned")
    ]


def test_two_adapters_answer_next_to_their_base(worker, adapters, tiny_model_folder, tmp_path):
    other = make_adapter(tiny_model_folder, tmp_path / "other", lora(r=8), seed=9)
    target = ChatTarget(tuned=AdapterChoice(folder=adapters["lora"]), second=AdapterChoice(folder=other))

    chat_model, _ = load(worker, target)
    chunks = answer(worker, "base", "tuned", "second")

    assert chat_model["branches"] == ["base", "tuned", "second"]
    assert len({text_of(chunks, branch) for branch in chat_model["branches"]}) == 3
    load(worker, ChatTarget.of_run(other))
    assert text_of(answer(worker, "tuned"), "tuned") == text_of(chunks, "second")


def test_a_fully_trained_model_loads_its_base_only_when_it_is_asked(worker, home, tiny_model_folder, tmp_path):
    run = tmp_path / "run"
    make_tiny_model(run / "adapter", seed=5, tie_word_embeddings=False, initializer_range=0.4)
    (run / "config.yaml").write_text(
        f"model: {{id: '{tiny_model_folder}'}}\ndataset: {{source: 'sample:x'}}\nadapter: {{method: none}}\n"
    )

    load(worker, ChatTarget.of_run(run))
    assert len(list(worker._active.weights.holders())) == 1
    chunks = answer(worker, "base", "tuned")

    assert len(list(worker._active.weights.holders())) == 2
    alone = ChatWorker(home)
    load(alone, ChatTarget.of_model(ModelConfig(id=str(tiny_model_folder))))
    assert text_of(chunks, "base") == text_of(answer(alone, "base"), "base") != text_of(chunks, "tuned")


def test_an_answer_ends_when_another_model_takes_its_place(worker, adapters):
    load(worker, ChatTarget.of_run(adapters["lora"]))
    chat_request = ChatRequest(messages=QUESTION, sampling=GREEDY).model_dump(mode="json")
    writing = worker.generate(chat_request, RecordedRequest())
    next(writing)

    load(worker, ChatTarget.of_run(adapters["ia3"]))

    with pytest.raises(RunError, match="Another model was loaded while this answer was written"):
        next(writing)


def test_a_model_larger_than_the_memory_is_refused_before_it_is_read(worker, tiny_model_folder, monkeypatch):
    from loratory.engine.hardware.device import MemoryNow

    monkeypatch.setattr("loratory.engine.chat.worker.weights.memory_now", lambda: MemoryNow(2**30, 1000))

    with pytest.raises(
        DeviceError, match=r"needs 0\.0 GiB for its weights; Test CPU has 0\.0 GiB free\. Load it with nf4"
    ):
        load(worker, ChatTarget.of_model(ModelConfig(id=str(tiny_model_folder))))


def test_memory_that_runs_out_in_an_answer_is_reported(worker, adapters, monkeypatch):
    load(worker, ChatTarget.of_run(adapters["lora"]))

    def no_memory(self):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("loratory.engine.chat.worker.answer.Answer.advance", no_memory)

    with pytest.raises(DeviceError, match="The memory of Test CPU ran out"):
        answer(worker, "tuned")


def test_a_conversation_that_the_template_refuses_is_reported(worker, adapters, tmp_path):
    load(worker, ChatTarget.of_run(adapters["lora"]))
    worker._active.tokenizer.chat_template = "{{ raise_exception('Only one turn.') }}"

    with pytest.raises(ModelError, match=r"chat template refuses this conversation: .*Only one turn"):
        answer(worker, "tuned")


def test_the_prompt_is_the_one_that_training_used(worker, adapters):
    from transformers import AutoTokenizer

    from loratory.engine.data.conversation import Conversation
    from loratory.engine.data.render.template import freeze_template
    from loratory.engine.data.render.tokenize import RenderOptions
    from tests.data.conversations import render_conversation

    load(worker, ChatTarget.of_run(adapters["lora"]))
    chat_request = ChatRequest(messages=QUESTION).model_dump(mode="json")
    view = worker.prompt(chat_request, RecordedRequest())

    tokenizer = AutoTokenizer.from_pretrained(adapters["lora"])
    freeze_template(tokenizer)
    conversation = Conversation((*QUESTION, Message("assistant", "A number.")))
    trained = render_conversation(0, conversation, tokenizer, RenderOptions(max_length=512)).rows[0]
    first_learned = next(index for index, label in enumerate(trained.labels) if label != -100)
    assert view["ids"] == trained.input_ids[:first_learned]
    assert trained.text.startswith(view["text"])


def test_a_base_that_was_replaced_since_the_training_is_noted(worker, tiny_model_folder, adapters, tmp_path):
    base = Path(shutil.copytree(tiny_model_folder, tmp_path / "base"))
    run = tmp_path / "runs" / "run"
    shutil.copytree(adapters["lora"], run / "adapter")
    values = {"model": {"id": str(base)}, "dataset": {"source": "sample:lab-chats"}, "run": {"name": "mine"}}
    (run / "config.yaml").write_text(config_to_yaml(config_from_mapping(values)))
    record_base(run, base)
    target = ChatTarget.of_run(run)
    assert load(worker, target)[0]["notes"] == []

    scale_a_tensor(base)

    assert load(ChatWorker(worker._home), target)[0]["notes"] == [
        "The weights of base have changed since mine was trained on them: model.safetensors differs."
    ]
    chosen = target.model_copy(update={"model": ModelConfig(id=str(tiny_model_folder))})
    assert load(worker, chosen)[0]["notes"] == []  # a person chose another base
