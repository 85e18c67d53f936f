"""`loratory space update`, `status` and `delete` against a stand-in of the Hub."""

import json
import os

import pytest

from tests.hub.server import Fault

NAME = "ada/loratory"
SHOWN = ("--visibility", "protected")
SECRET = "hf_SecretOfTheMirrorThatStaysSecret"


def test_an_update_sends_what_changed_and_nothing_twice(hub, loratory):
    assert loratory("create", NAME, "--warm", "Qwen/Qwen3-0.6B")[0] == 0
    wheel = next(name for name in hub.repositories[NAME].files() if name.endswith(".whl"))

    code, out, _ = loratory("update", NAME)
    assert code == 0
    assert "Nothing to update." in out
    assert len(hub.repositories[NAME].messages) == 1

    repository = hub.repositories[NAME]
    files = repository.commits[repository.branches["main"]]
    files["loratory-0.0.9-py3-none-any.whl"] = files[wheel]
    files["notes.txt"] = files["README.md"]
    files["Dockerfile"] = files["requirements.txt"]
    code, out, _ = loratory("update", NAME, "--json")

    assert code == 0
    assert json.loads(out)["changed"] == ["Dockerfile changed", "loratory-0.0.9-py3-none-any.whl removed"]
    assert "notes.txt" in repository.files()  # of the owner
    assert b"Qwen/Qwen3-0.6B" in repository.files()["Dockerfile"]  # as it was made


def test_an_update_whose_answer_was_lost_reports_what_it_changed(hub, loratory):
    hub.add(NAME, {"Dockerfile": b"FROM scratch"})
    hub.faults = [Fault("commit", "lost")]

    record = json.loads(loratory("update", NAME, "--json")[1])

    assert "Dockerfile changed" in record["changed"]


def test_a_gradio_space_stays_one(hub, loratory):
    assert loratory("create", NAME, "--sdk", "gradio", "--warm", "Qwen/Qwen3-0.6B")[0] == 0
    assert hub.spaces[NAME].sdk == "gradio"
    files = hub.repositories[NAME].files()
    assert "app.py" in files
    assert "Dockerfile" not in files
    assert b"preload_from_hub:\n- HuggingFaceTB/SmolLM2-135M-Instruct\n- Qwen/Qwen3-0.6B\n" in files["README.md"]
    assert "Nothing to update." in loratory("update", NAME)[1]


def test_an_update_changes_what_is_given(hub, loratory, monkeypatch):
    assert loratory("create", NAME, "--admit", "bob", *SHOWN)[0] == 0
    monkeypatch.setenv("MIRROR", SECRET)

    changes = ("--hardware", "t4-small", "--sleep-hours", "1", "--secret", "MIRROR", "--admit", "", "--no-bucket")
    code, out, err = loratory("update", NAME, *changes)

    assert code == 0, err
    space = hub.spaces[NAME]
    assert (space.requested_hardware, space.sleep_seconds) == ("t4-small", 3600)
    assert space.secrets.keys() == {"MIRROR"}
    assert space.variables == {}
    assert "download.pytorch.org" not in hub.repositories[NAME].files()["Dockerfile"].decode()
    assert "$0.40 an hour" in err
    assert "t4-small requested" in out


def test_an_update_of_what_is_not_there_or_not_ours_changes_nothing(hub, loratory, refusal):
    assert "The Hub has no Space ada/loratory" in loratory("update", NAME)[2]
    hub.add(NAME, {"index.html": b"hi"}, sdk="static")
    assert "static Space" in refusal("update", NAME)
    assert hub.repositories[NAME].files() == {"index.html": b"hi"}


def test_the_status_is_one_object_with_price_and_sleep(hub, loratory):
    assert loratory("create", NAME, "--hardware", "l4x1", "--admit", "bob", *SHOWN)[0] == 0
    hub.stages = ["SLEEPING"]

    record = json.loads(loratory("status", NAME, "--json")[1])

    assert record["stage"] == "SLEEPING"
    assert record["price_per_hour_usd"] == pytest.approx(0.8)
    assert record["sleep_seconds"] is None
    assert record["admitted"] == "bob"
    assert record["bucket"] == "ada/loratory-loratory"
    assert record["address"] == "https://ada-loratory.hf.space"
    text = loratory("status", NAME)[1]
    assert "is asleep" in text
    assert "$0.80 an hour" in text
    assert "sleeps    never" in text


def test_a_deletion_asks_for_the_name_and_leaves_the_bucket(hub, loratory, refusal):
    assert loratory("create", NAME)[0] == 0
    assert "Add --yes." in refusal("delete", NAME)
    assert NAME in hub.spaces

    code, out, _ = loratory("delete", NAME, "--yes")

    assert code == 0
    assert "The bucket ada/loratory-loratory stays." in out
    assert hub.spaces == {}
    assert hub.buckets == {"ada/loratory-loratory": True}
    assert "has no Space" in loratory("delete", NAME, "--yes")[2]


@pytest.mark.parametrize("answer", [NAME, "loratory", ""])
def test_a_deletion_needs_the_very_name(hub, loratory, monkeypatch, answer):
    assert loratory("create", NAME)[0] == 0
    reading, writing = os.openpty()
    os.write(reading, f"{answer}\n".encode())
    with os.fdopen(writing) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        code, _, err = loratory("delete", NAME, "--with-bucket")
    os.close(reading)

    assert "and the bucket ada/loratory-loratory with all its runs" in err
    assert (code == 0) == (answer == NAME)
    assert (hub.spaces == {}) == (hub.buckets == {}) == (answer == NAME)
