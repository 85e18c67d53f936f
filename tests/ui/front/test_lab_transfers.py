"""What people of a lab upload and download, where the server has another folder and another TMPDIR than the home's."""

import itertools
import json
import socket
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from loratory.engine.accounts.lab import change_settings
from loratory.engine.runs.store import RunStore
from tests.invented_runs import InventedRun, a_config, write_run
from tests.page_client import PageClient, read_config
from tests.real_tls import public_site
from tests.ui.front.lab import PATIENCE_SECONDS, running_lab

ROWS = b'{"text": "of ann"}\n'


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
        with running_lab(tmp_path_factory.mktemp("lab")) as running:
            for name in ("ann", "bea", "cid"):
                running.add(name)
            yield running


@pytest.fixture(scope="module")
def ann(lab):
    with lab.signed_in("ann") as http, PageClient.open(http, read_config(http)) as page:
        yield http, page


@pytest.fixture(scope="module")
def bea(lab):
    with lab.signed_in("bea") as http, PageClient.open(http, read_config(http)) as page:
        yield http, page


def file_of(path: str | Path, **more: object) -> dict[str, object]:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}, **more}


def upload(http: httpx.Client, name: str, content: bytes) -> dict[str, object]:
    """Send a file, as a browser does; returns what it then puts into its event."""
    (path,) = http.post("/gradio_api/upload", files={"files": (name, content)}).raise_for_status().json()
    return file_of(path, url=f"{http.base_url}gradio_api/file={path}", orig_name=name, size=len(content))


def event_of(http: httpx.Client, name: str) -> dict[str, Any]:
    """Return an event of that name that takes values, and is answered at once."""
    events = read_config(http)["dependencies"]
    return next(event for event in events if event["targets"][0][1] == name and event["inputs"] and not event["queue"])


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


def test_a_member_trains_on_an_uploaded_file(lab, ann):
    http, page = ann

    page.press("upload", "upload", upload(http, "rows.jsonl", ROWS))

    own = lab.home.for_person("ann")
    assert "rows.jsonl" in page.value("dataset-summary")
    assert (own.uploads / "rows.jsonl").read_bytes() == ROWS
    assert contents(own.transfers) == []


def test_an_upload_beyond_the_disk_space_of_its_person_is_refused(lab, ann):
    before = contents(lab.home.for_person("ann").transfers)
    change_settings(lab.home, limits={"free_disk_gb": 0, "disk_gb_per_person": 0.001})
    try:
        answer = ann[0].post("/gradio_api/upload", files={"files": ("rows.jsonl", b"x" * 2_000_000)})
    finally:
        change_settings(lab.home, limits={"free_disk_gb": 0, "disk_gb_per_person": None})

    assert answer.status_code == 413
    assert answer.text.startswith("You use ")
    assert " of 1.0 MB" in answer.text
    assert contents(lab.home.for_person("ann").transfers) == before


def test_a_member_opens_a_saved_conversation(ann):
    http, page = ann
    saved = {"format": "loratory conversation", "turns": [{"question": "When is it due?", "answers": []}]}

    page.press("chat-open", "upload", [upload(http, "conversation.json", json.dumps(saved).encode())])

    assert "When is it due?" in page.value("transcript")


def test_a_member_downloads_the_script_and_the_yaml_of_a_run(lab, ann):
    http, page = ann
    write_run(RunStore(lab.home, "ann"), a_config(run__name="due dates"), InventedRun())
    page.press("Export", "select")
    for form, name in (("Script", "train.py"), ("YAML", "config.yaml")):
        page.press("export-form", "input", form)

        download = page.value("download-text")
        assert download["orig_name"] == name
        assert "due dates" in http.get(download["url"]).raise_for_status().text


def test_a_guest_is_offered_no_upload_and_no_field_for_a_token(lab):
    lab.add("dan", "guest")
    with lab.signed_in("dan") as http:
        parts = {part["props"].get("elem_id"): part["props"] for part in read_config(http)["components"]}
        assert http.post("/gradio_api/upload", files={"files": ("rows.jsonl", ROWS)}).status_code == 404

    assert [parts[name]["visible"] for name in ("upload", "chat-open", "chat-links")] == [False, False, True]
    assert not {"own-model-token", "own-dataset-token"} & parts.keys()


def test_the_upload_of_another_is_neither_taken_nor_shown(lab, ann, bea):
    theirs = upload(ann[0], "rows.jsonl", b"only of ann")["path"]
    saved = upload(ann[0], "conversation.json", b"{}")["path"]
    http, page = bea

    before = page.value("dataset-summary"), page.value("transcript")
    for path in (theirs, saved, "/etc/hostname", "", "http://127.0.0.1/rows.jsonl"):
        for part, streams in itertools.product(("upload", "chat-open"), (False, True)):
            file = file_of(path, is_stream=streams)
            with pytest.raises(KeyError):  # an error has no data
                page.press(part, "upload", [file] if part == "chat-open" else file)
    assert (page.value("dataset-summary"), page.value("transcript")) == before

    assert Path(str(theirs)).read_bytes() == b"only of ann"
    assert contents(lab.home.for_person("bea").uploads) == contents(lab.home.for_person("bea").transfers) == []
    assert http.get(f"/gradio_api/file={theirs}").status_code == 404


def test_no_address_in_an_event_is_fetched(lab, bea):
    http, page = bea
    taking = event_of(http, "input")
    with public_site() as site:
        address = file_of(f"{site.url}/rows.jsonl")
        for forgery in (address, {"deep": [[{"er": address}]]}):
            with pytest.raises(KeyError):  # an error has no data
                page.press("upload", "upload", forgery)
            body = {"data": [forgery] * len(taking["inputs"]), "fn_index": taking["id"], "session_hash": page.session}
            answer = http.post("/gradio_api/run/predict", json=body)
            assert answer.json()["error"] == "That file is an address. Addresses are not fetched here; upload the file."
            body = {"data": forgery, "fn_name": "query", "component_id": 1, "session_hash": page.session}
            assert http.post("/gradio_api/component_server", json=body).status_code == 422
        page.press("upload", "upload", {**upload(http, "rows.jsonl", ROWS), "url": f"{site.url}/rows.jsonl"})

    assert site.visits == []
    assert "rows.jsonl" in page.value("dataset-summary")  # its address is ignored
    assert not any(lab.home.for_person("bea").transfers.rglob("*.jsonl"))


def test_a_page_has_its_own_folder_whose_event_came_before_it_on_the_connection(lab, ann):
    """As a proxy may send them: the second request begins in the context of the first."""
    event = event_of(ann[0], "load")
    body = {"data": [None] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "first"}
    with lab.signed_in("cid") as cid:
        first = ann[0].build_request("POST", "/gradio_api/run/predict", json=body)
        second = cid.build_request("GET", "/config", headers={"Connection": "close"})
    address = urlsplit(lab.url)
    with (
        socket.create_connection((address.hostname, address.port), PATIENCE_SECONDS) as plain,
        lab.trust.wrap_socket(plain, server_hostname=address.hostname) as connection,
    ):
        connection.sendall(b"".join(map(raw, (first, second))))
        while connection.recv(2**16):
            pass

    with lab.signed_in("cid") as cid, PageClient.open(cid, read_config(cid)) as page:
        page.press("upload", "upload", upload(cid, "rows.jsonl", ROWS))
    assert contents(lab.home.for_person("cid").uploads) == [ROWS]


def raw(request: httpx.Request) -> bytes:
    head = b"".join(b"%b: %b\r\n" % header for header in request.headers.raw)
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (request.method.encode(), request.url.raw_path, head, request.read())
