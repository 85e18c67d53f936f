"""What arrives on the Hub, and what is said when it does not: against a stand-in that fails on demand."""

import hashlib
import threading
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants

from loratory.engine.config.results import PushConfig
from loratory.engine.errors import EngineError, HubUnreachableError, PushError
from loratory.engine.export.contract import UploadOrder
from loratory.engine.export.push_upload import HubPush
from loratory.engine.hub import RetryPolicy, quoted
from tests.export.push_folders import ADAPTER_FILES, adapter_folder, merged_folder
from tests.hub.repositories import Blob, OwnHub, StoredRepository
from tests.hub.server import TOKEN, Fault

NAME = "ada/my-adapter"
ATTEMPTS = 3
LIBRARYS_OWN = ("preupload", "batch", "put")  # requests that huggingface_hub retries


@pytest.fixture
def hub(monkeypatch):
    with OwnHub() as stand_in:
        stand_in.serve_all(monkeypatch)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))  # there alone
        yield stand_in


class Pusher:
    """Pushes and remembers what was told and how long it would have waited."""

    def __init__(self, hub: OwnHub, token: str = TOKEN) -> None:
        self.messages: list[str] = []
        self.waits: list[float] = []
        self._api = lambda: HfApi(endpoint=hub.address, token=token)
        self._retry_policy = RetryPolicy(ATTEMPTS, 0.01, sleep=self.waits.append)

    def push(self, folder, name=NAME, **settings):
        order = UploadOrder(folder=folder, repository=name, settings=PushConfig(**settings), message="Push my run")
        push = HubPush(self._api(), lambda progress: self.messages.append(progress.message), self._retry_policy)
        push.check(name, order.settings)
        return push.upload(order)


def test_an_adapter_arrives_private_in_one_commit(hub, tmp_path):
    folder = adapter_folder(tmp_path / "out")

    result = Pusher(hub).push(folder)

    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.files() == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(repository.files()) == ADAPTER_FILES
    assert repository.messages == ["Push my run"]
    assert result.commit == repository.branches["main"]
    assert result.url == f"{hub.address}/{NAME}"
    assert {file.name for file in result.files} == ADAPTER_FILES
    assert hub.unauthorized_uploads == []  # storage is not the Hub, and gets no token


def test_only_files_of_the_allow_list_are_sent(hub, tmp_path):
    folder = adapter_folder(tmp_path / "out")
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "trainer_state.json", ".env", "config.yaml"):
        (folder / name).write_bytes(b"not for others")
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"not for others")
    (tmp_path / "elsewhere").write_text("not for others")
    (folder / "vocab.txt").symlink_to(tmp_path / "elsewhere")

    Pusher(hub).push(folder)

    assert set(hub.repositories[NAME].files()) == ADAPTER_FILES
    assert all(b"not for others" not in content for content in hub.large.values())


REFUSALS = [
    ("whoami", 401, PushError, "does not accept your token (HTTP 401"),
    ("create", 403, PushError, "does not let your token write to ada/my-adapter (HTTP 403"),
    ("put", 403, PushError, "does not let your token write to ada/my-adapter (HTTP 403"),
    ("commit", 404, PushError, "The Hub has no repository ada/my-adapter that your token can access"),
    ("commit", 412, PushError, "ada/my-adapter was changed by another request at the same time (HTTP 412"),
    ("commit", 418, PushError, "The Hub refuses this for ada/my-adapter (HTTP 418"),
]


@pytest.mark.parametrize(("step", "status", "kind", "message"), REFUSALS)
def test_a_refusal_is_reported_at_once_and_leaves_nothing_finished(hub, tmp_path, step, status, kind, message):
    hub.faults = [Fault(step, status, times=9)]
    pusher = Pusher(hub)

    with pytest.raises(kind) as error_info:
        pusher.push(adapter_folder(tmp_path / "out"))

    assert message in error_info.value.what
    assert error_info.value.fix
    assert TOKEN not in str(error_info.value)
    assert pusher.waits == []
    # Each large file is put once at most: the two go side by side, and the first refusal may come before the other begins.
    assert hub.requests[step] in ({1, 2} if step == "put" else {1})
    assert all(repository.files() == {} for repository in hub.repositories.values())


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("step", ["whoami", "create", "info", "preupload", "batch", "put", "commit"])
@pytest.mark.parametrize("what", [429, 500, 503, "reset"])
def test_what_passes_is_waited_for(hub, tmp_path, step, what):
    hub.faults = [Fault(step, what, times=2)]
    pusher = Pusher(hub)

    pusher.push(adapter_folder(tmp_path / "out"))

    assert pusher.waits == ([] if step in LIBRARYS_OWN else [0.01, 0.02])
    assert set(hub.repositories[NAME].files()) == ADAPTER_FILES
    assert len(hub.repositories[NAME].messages) == 1
    reason = {429: "Rate limited by the Hub (HTTP 429", "reset": "cannot be reached"}.get(
        what, f"out of order (HTTP {what}"
    )
    retries = [message for message in pusher.messages if reason in message and "Trying again in 1 s." in message]
    assert len(retries) == len(pusher.waits)
    assert not any(TOKEN in message for message in pusher.messages)


ENDS = [
    (429, "Rate limited by the Hub (HTTP 429", "Wait some minutes, then try again."),
    (500, "out of order (HTTP 500", "Wait until it is back, then try again."),
    ("reset", "cannot be reached", "Check the name and the network"),
]


@pytest.mark.parametrize(("what", "message", "fix"), ENDS)
@pytest.mark.parametrize("step", ["put", "commit"])
def test_patience_ends_and_nothing_is_called_finished(hub, tmp_path, step, what, message, fix):
    hub.faults = [Fault(step, what, times=99)]

    with pytest.raises(HubUnreachableError) as error_info:
        Pusher(hub).push(adapter_folder(tmp_path / "out"))

    assert message in error_info.value.what
    assert fix in error_info.value.fix
    assert hub.repositories[NAME].files() == {}
    assert step == "put" or hub.requests[step] == ATTEMPTS


@pytest.mark.parametrize("headers", [{"Retry-After": "7"}, {"ratelimit": '"api";r=0;t=7'}])
def test_the_hub_reports_how_long_to_wait(hub, tmp_path, headers):
    hub.faults = [Fault("commit", 429, headers=headers)]
    pusher = Pusher(hub)

    pusher.push(adapter_folder(tmp_path / "out"))

    assert pusher.waits == [7.0]
    assert "Rate limited by the Hub (HTTP 429: refused with …). Trying again in 7 s." in pusher.messages


def test_a_second_push_sends_only_what_is_missing(hub, tmp_path):
    folder = merged_folder(tmp_path / "out", shards=4)
    last = hashlib.sha256((folder / "model-00004-of-00004.safetensors").read_bytes()).hexdigest()
    is_repaired = threading.Event()
    real = hub._put

    def fails_at_the_last(request):
        if request.name == last and not is_repaired.is_set():
            return 500, {"error": "full"}
        return real(request)

    hub._put = fails_at_the_last
    with pytest.raises(HubUnreachableError):
        Pusher(hub).push(folder, kind="merged")
    sent_before = list(hub.put)
    is_repaired.set()

    Pusher(hub).push(folder, kind="merged")

    assert len(sent_before) >= 3
    assert len(hub.put) == len(set(hub.put)) == 5
    assert set(hub.repositories[NAME].files()) == {path.name for path in folder.iterdir()}


def test_pushing_the_same_again_commits_nothing(hub, tmp_path):
    folder = adapter_folder(tmp_path / "out")
    first = Pusher(hub).push(folder)

    sent_files = list(hub.put)

    assert Pusher(hub).push(folder).commit == first.commit
    assert hub.put == sent_files
    assert len(hub.repositories[NAME].messages) == 1


def test_a_commit_whose_answer_was_lost_is_found_and_not_repeated(hub, tmp_path):
    hub.faults = [Fault("commit", "lost")]

    result = Pusher(hub).push(adapter_folder(tmp_path / "out"))

    assert result.commit == hub.repositories[NAME].branches["main"]
    assert hub.repositories[NAME].messages == ["Push my run"]
    assert hub.requests["commit"] == 1


def test_weights_of_an_earlier_push_do_not_stay_next_to_the_new_ones(hub, tmp_path):
    Pusher(hub).push(merged_folder(tmp_path / "one", shards=3), kind="merged")
    repository = hub.repositories[NAME]
    repository.commits[repository.branches["main"]]["notes.md"] = Blob(b"mine", is_large=False)

    Pusher(hub).push(merged_folder(tmp_path / "two", shards=2), kind="merged")

    names = set(repository.files())
    assert names == {path.name for path in (tmp_path / "two").iterdir()} | {"notes.md"}


def test_an_adapter_and_a_model_are_not_mixed(hub, tmp_path):
    Pusher(hub).push(merged_folder(tmp_path / "one"), kind="merged")
    before = hub.repositories[NAME].files()

    with pytest.raises(PushError, match="ada/my-adapter already has a complete model"):
        Pusher(hub).push(adapter_folder(tmp_path / "two"))
    assert hub.repositories[NAME].files() == before


def test_what_is_to_be_private_is_not_put_into_a_public_repository(hub, tmp_path):
    hub.repositories[NAME] = StoredRepository(private=False)

    with pytest.raises(PushError, match="is public, but this push should be private"):
        Pusher(hub).push(adapter_folder(tmp_path / "out"))
    assert hub.put == []


def test_a_branch_is_made_and_main_is_left_alone(hub, tmp_path):
    result = Pusher(hub).push(adapter_folder(tmp_path / "out"), revision="v2")

    repository = hub.repositories[NAME]
    assert repository.files("main") == {}
    assert set(repository.files("v2")) == ADAPTER_FILES
    assert result.url.endswith(f"/{NAME}/tree/v2")


def test_a_hub_without_xet_is_sent_plain_files(hub, tmp_path, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)

    Pusher(hub).push(adapter_folder(tmp_path / "out"))

    assert hub.requests["xet"] == 1
    assert set(hub.repositories[NAME].files()) == ADAPTER_FILES


def test_a_refusal_of_the_native_uploader_is_one_of_the_hub(hub, tmp_path, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.faults = [Fault("xet", 403, times=9), Fault("batch", 403)]

    with pytest.raises(PushError, match=r"does not let your token write to ada/my-adapter \(HTTP 403"):
        Pusher(hub).push(adapter_folder(tmp_path / "out"))
    assert hub.repositories[NAME].files() == {}


def test_a_token_that_cannot_be_sent_is_not_quoted(hub, tmp_path):
    secret = "hf_secret\nwith-a-line"

    with pytest.raises(EngineError) as error_info:
        Pusher(hub, token=secret).push(adapter_folder(tmp_path / "out"))
    assert "secret" not in str(error_info.value)
    assert error_info.value.__suppress_context__


def test_an_hour_is_not_waited_for_but_said(hub, tmp_path):
    hub.faults = [Fault("commit", 429, headers={"Retry-After": "3600"})]
    pusher = Pusher(hub)

    with pytest.raises(HubUnreachableError, match="Wait 60 minutes, then try again"):
        pusher.push(adapter_folder(tmp_path / "out"))
    assert pusher.waits == []


def test_a_private_repository_stays_private_and_reports_it(hub, tmp_path):
    hub.repositories[NAME] = StoredRepository(private=True)

    result = Pusher(hub).push(adapter_folder(tmp_path / "out"), private=False)

    assert result.private
    assert any("was private already and stays private" in note for note in result.notes)


@pytest.mark.parametrize("token", [TOKEN, "hf_oauth_eyJhbGciOi.J9-x_y", "a token of another kind"])
def test_the_words_of_a_server_are_shown_without_a_token(token):
    text = quoted(f"Forbidden for {token}\x1b[31m.", token if " " in token else "another")

    assert text.startswith(": Forbidden for …")
    assert "eyJ" not in text
