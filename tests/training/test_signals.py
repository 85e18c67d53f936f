"""One request to end may be delivered several times; only a second request ends a run at once."""

import signal

import pytest
import transformers

from loratory.engine.errors import ModelError
from loratory.engine.models.source import ModelSource
from loratory.engine.runs.run import RunFolder
from loratory.engine.training.build import load_model
from loratory.engine.training.failure import REPEAT_SECONDS, CancelledError, StopRequests
from loratory.engine.training.placement import choose_precision
from tests.training.tiny_training import CPU, ON_CPU, make_config

SECOND_REQUEST = REPEAT_SECONDS + 1.0


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def signals_restored():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def listening(tmp_path, clock, world_size=1):
    requests = StopRequests(RunFolder(tmp_path), world_size, clock)
    requests.listen()
    return requests


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_is_delivered_twice_is_one_request(second, tmp_path, clock, signals_restored):
    requests = listening(tmp_path, clock)

    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(second)
    clock.now += REPEAT_SECONDS - 0.1
    signal.raise_signal(second)

    assert requests.stop_wanted()
    assert requests.reason == "The system asked to end (SIGTERM)."


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_request_ends_at_once_and_once_only(number, tmp_path, clock, signals_restored):
    listening(tmp_path, clock)
    signal.raise_signal(number)
    clock.now += SECOND_REQUEST

    with pytest.raises(CancelledError):
        signal.raise_signal(number)
    signal.raise_signal(number)  # while it ends


def test_a_launcher_may_say_sigterm_as_often_as_it_likes(tmp_path, clock, signals_restored):
    requests = listening(tmp_path, clock, world_size=2)

    for _ in range(4):
        signal.raise_signal(signal.SIGTERM)
        clock.now += SECOND_REQUEST

    assert requests.stop_wanted()
    with pytest.raises(CancelledError):
        signal.raise_signal(signal.SIGINT)


def test_a_cancellation_while_the_model_is_loaded_is_not_a_broken_model(
    tiny_model_folder, tmp_path, clock, signals_restored, monkeypatch
):
    listening(tmp_path, clock)
    signal.raise_signal(signal.SIGTERM)
    clock.now += SECOND_REQUEST
    config = make_config(tiny_model_folder)
    arguments = (ModelSource(str(tiny_model_folder), "tiny"), config, choose_precision(config, CPU), ON_CPU)
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
    )

    with pytest.raises(CancelledError):
        load_model(*arguments)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ModelError):  # what else goes wrong there is
        load_model(*arguments)
