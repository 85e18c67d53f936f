"""Answers to conversations with images are those of transformers' own `generate`, in every family."""

import pytest

from loratory.engine.chat.contract import ChatRequest, ChatTarget
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import IMAGE_MARK, ImageRef, Message
from loratory.engine.errors import ModelError
from tests.chat.lively_vision import QUESTION, TOKENS, Family, family_in, load
from tests.chat.test_worker import load as load_text
from tests.tiny_vision import MEMBERS

FAMILIES = [member.model_type for member in MEMBERS]
GREEDY = SamplingConfig(temperature=0, max_new_tokens=TOKENS)


@pytest.fixture
def family(request, tmp_path_factory) -> Family:
    return family_in(tmp_path_factory.getbasetemp() / "vision", request.param)


def answers(worker, *requests):
    """Return the tokens of each request's branches, generated in turns as the process does."""
    running = [
        worker.begin(ChatRequest(messages=messages, branches=branches, sampling=GREEDY))
        for messages, branches in requests
    ]
    while any(not answer.is_done for group in running for answer in group):
        for group in running:
            for answer in group:
                if not answer.is_done:
                    answer.advance()
    return [[list(answer.tokens) for answer in group] for group in running]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_answers_are_those_of_generate(family, home):
    worker = load(home, family, ChatTarget.of_run(family.adapter))
    several = (
        family.turn(f"{IMAGE_MARK}and {IMAGE_MARK} which is blue?"), Message("assistant", "two cats"), Message("user", "how many?"),
    )  # fmt: skip
    single, text = (family.turn(QUESTION),), (Message("user", "what is a rank?"),)
    requests = [(messages, ("base", "tuned")) for messages in (single, several, text)]

    tokens = answers(worker, *requests)  # which take turns, so nothing of one may reach another

    for (messages, _), texts in zip(requests, tokens, strict=True):
        assert texts == [family.expected(messages), family.expected(messages, adapter=True)]
        assert texts[0] != texts[1]
    other = (Message("user", QUESTION, images=(family.refs[1],)),)
    assert answers(worker, (other, ("base",)))[0][0] != tokens[0][0]


def test_a_text_model_and_an_unknown_image_are_refused(home, tmp_path_factory, tiny_model_folder):
    family = family_in(tmp_path_factory.getbasetemp() / "vision", "idefics3")
    seeing = load(home, family, ChatTarget.of_model(ModelConfig(id="x")))
    unknown = Message("user", QUESTION, images=(ImageRef("ab" * 32, 64, 64),))
    wrong_size = Message("user", QUESTION, images=(ImageRef(family.refs[0].digest, 9, 9),))
    for message in (unknown, wrong_size):
        with pytest.raises(ModelError, match="is not in the media store"):
            seeing.begin(ChatRequest(messages=(message,), branches=("base",)))

    from loratory.engine.chat.worker.main import ChatWorker

    reading = ChatWorker(home)
    loaded, _ = load_text(reading, ChatTarget.of_model(ModelConfig(id=str(tiny_model_folder))))
    assert not loaded["takes_images"]
    with pytest.raises(ModelError, match="takes text only, and the conversation has images"):
        reading.begin(ChatRequest(messages=(family.turn(QUESTION),), branches=("base",)))
