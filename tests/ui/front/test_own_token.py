"""A person's Hub token, given to the page for a download and for a push, is found nowhere afterwards, nor meanwhile."""

import json
import os
import secrets
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import audit_log_path
from loratory.engine.config.run import ModelConfig
from loratory.engine.export.push import PushJob
from loratory.engine.models.folder import ModelPart
from loratory.engine.models.hub import find_snapshot
from loratory.engine.models.source import resolve_model
from loratory.engine.private_hub import list_private
from loratory.engine.runs.store import RunStore
from loratory.ui.backend.models import DOWNLOAD, OwnDownloads
from loratory.ui.tabs.export_formats import ADAPTER, HUB
from tests.browser.real_server import contents_of
from tests.export.quick_export import QuickExport
from tests.hub.published import PublishedHub
from tests.hub.repositories import OwnHub
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.front.lab import Lab, fake_services_of, running_lab
from tests.waiting import wait_until

MODEL, DATASET = "owner/gated", "owner/gated-rows"
WORKERS = ("loratory.engine.private_hub", "push_upload")
TOKEN = f"hf_{secrets.token_hex(16)}"  # of this process: every process of the machine is scanned

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of processes")


@pytest.fixture
def hubs(tmp_path, tiny_model_folder, monkeypatch):
    files = {path.name: path.read_bytes() for path in tiny_model_folder.iterdir() if path.is_file()}
    monkeypatch.setenv("HF_HOME", str(tmp_path / "shared-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")

    def services_of(own, person):
        services = fake_services_of(own, person)
        push = partial(PushJob, own, make_export=QuickExport())
        results = replace(services.results, push=push)
        models = OwnDownloads(services.runs, "model") if services.own_models is not None else None
        return replace(services, results=results, own_models=models)

    with PublishedHub() as gated, OwnHub() as pushed, running_lab(tmp_path / "home", services_of) as running:
        gated.repositories[MODEL] = files
        gated.repositories[DATASET] = {"rows.jsonl": b'{"instruction": "Say it.", "output": "It."}\n'}
        gated.gated |= {MODEL, DATASET}
        gated.token = pushed.token = TOKEN
        yield LabWithHubs(running, gated, pushed)


class LabWithHubs(NamedTuple):
    """A lab, the Hub that it downloads from, and the one that it pushes to."""

    lab: Lab
    gated: PublishedHub
    pushed: OwnHub


class Visitor:
    """Presses buttons of a page with values by the ids of its parts, and keeps every answer."""

    def __init__(self, client):
        self.client = client
        self.answers = [client.get("/").text]
        self.config = client.get("/config").json()
        self.ids = {part["props"].get("elem_id"): part["id"] for part in self.config["components"]}

    def open_tab_with(self, name: str) -> None:
        """Open the tab whose choices are filled then."""
        for dependency in self.config["dependencies"]:
            if any(event == "select" for _, event in dependency["targets"]) and self.ids[name] in dependency["outputs"]:
                self._send(dependency, {})

    def press(self, button: str, **values: object) -> None:
        settings = {self.ids[name.replace("_", "-")]: value for name, value in values.items()}
        for dependency in self.config["dependencies"]:
            if [self.ids[button], "click"] in dependency["targets"] and dependency["backend_fn"]:
                self._send(dependency, settings)

    def _send(self, dependency: dict[str, Any], values: dict[int, object]) -> None:
        presents = {part["id"]: part["props"].get("value") for part in self.config["components"]}
        data = [values.get(part, presents.get(part)) for part in dependency["inputs"]]
        body = {"data": data, "fn_index": dependency["id"], "session_hash": "own"}
        answer = self.client.post("/gradio_api/run/predict", json=body)
        assert answer.status_code == 200, answer.text
        self.answers.append(answer.text)

    def readers_of(self, name: str) -> list[int]:
        """Handlers that get the value of a part."""
        return [
            dependency["id"] for dependency in self.config["dependencies"] if self.ids[name] in dependency["inputs"]
        ]


class Watch:
    """Scans repeatedly for a secret in the environment and the command line of every process."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._scans = threading.Condition()  # guards _begun and _ended
        self._begun = self._ended = 0  # scans
        self.found: list[str] = []
        self.workers: set[str] = set()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def after_a_scan(self, answer: Callable[..., None]) -> Callable[..., None]:
        """Let a Hub answer once all processes were scanned while it was asked: a worker is seen however quick it is."""

        def later(*request: Any, **how: Any) -> None:
            with self._scans:
                next_scan = self._begun + 1
                self._scans.wait_for(lambda: self._ended >= next_scan or self._done.is_set())
            answer(*request, **how)

        return later

    def _run(self) -> None:
        while not self._done.wait(0.02):
            with self._scans:
                self._begun += 1
            self._scan()
            with self._scans:
                self._ended += 1
                self._scans.notify_all()
        with self._scans:
            self._scans.notify_all()

    def _scan(self) -> None:
        for pid in psutil.pids():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if self._secret in command or self._secret in environment:
                self.found.append(f"{pid}: {command!r}")
            self.workers.update(name for name in WORKERS if name.encode() in command)


@pytest.mark.e2e
def test_the_token_of_a_person_is_found_nowhere(hubs, tmp_path, caplog, capfd, monkeypatch):
    lab, gated, pushed = hubs
    ann = lab.add("ann")
    lab.add("bea")
    run = write_run(RunStore(lab.home, "ann"), a_config(model__id=MODEL), InventedRun())
    own = lab.home.for_person("ann")
    with lab.signed_in("ann") as client, Watch(TOKEN) as watch:
        monkeypatch.setattr(gated, "_serve", watch.after_a_scan(gated._serve))
        monkeypatch.setattr(pushed, "_serve", watch.after_a_scan(pushed._serve))
        page = Visitor(client)
        assert len(page.readers_of("own-model-token")) == len(page.readers_of("export-token")) == 1
        assert len(page.readers_of("own-dataset-token")) == 1

        monkeypatch.setenv("HF_ENDPOINT", gated.address)
        page.press("own-model-download", own_model=MODEL, own_model_revision="", own_model_token=TOKEN)
        work = lab.pages._pages["ann"].services.own_models.downloading.find(DOWNLOAD)
        assert work is not None, page.answers[-1]
        assert work.done.wait(300)
        assert work.error is None
        result = resolve_model(ModelConfig(id=MODEL), own, part=ModelPart.WEIGHTS)
        assert Path(result.location).is_relative_to(own.own_models)

        page.press("own-dataset-download", own_dataset=DATASET, own_dataset_revision="", own_dataset_token=TOKEN)
        dataset_work = lab.pages._pages["ann"].services.own_datasets.downloading.find(DOWNLOAD)
        assert dataset_work is not None, page.answers[-1]
        assert dataset_work.done.wait(300)
        assert dataset_work.error is None
        assert [copy.hub_id for copy in list_private(own, "dataset")] == [DATASET]
        assert list_private(lab.home.for_person("bea"), "dataset") == []

        monkeypatch.setenv("HF_ENDPOINT", pushed.address)
        page.open_tab_with("export-run")
        page.press(
            "export-start", export_run=run.id, export_checkpoint="final", export_form=HUB, export_repository="ada/mine",
            export_token=TOKEN,
        )  # fmt: skip
        results = lab.pages._pages["ann"].services.results
        pushing = results.exporting.find(run.id)
        assert pushing is not None, page.answers[-2:]
        assert pushing.done.wait(300)
        assert pushing.error is None
        assert "ada/mine" in pushed.repositories

        page.press("export-start", export_run=run.id, export_checkpoint="final", export_form=ADAPTER, export_folder="")
        exporting = results.exporting.find(run.id)
        assert exporting.done.wait(300)
        page.answers += [client.get(path).text for path in ("/", "/config", "/account")]

    assert watch.workers == set(WORKERS), "all were seen while they were at work"
    assert watch.found == []
    assert not [answer[:300] for answer in page.answers if TOKEN in answer]
    for folder in (lab.home.root, tmp_path / "shared-cache"):
        assert not [path for path, content in contents_of(folder).items() if TOKEN.encode() in content]
    assert TOKEN not in caplog.text
    assert TOKEN not in "".join(capfd.readouterr())
    assert TOKEN not in json.dumps(dict(os.environ))
    entries = [entry for entry in AuditLog(audit_log_path(lab.home)).entries() if entry.person == ann.name]
    assert [(entry.kind, entry.subject) for entry in entries if entry.kind != "signed in"] == [
        ("model downloaded", f"ann/{MODEL}"), ("dataset downloaded", f"ann/{DATASET}"), ("pushed", f"ann/{run.id}"), ("exported", f"ann/{run.id}"),
    ]  # fmt: skip


@pytest.mark.e2e
def test_what_one_person_fetched_is_not_there_for_another(hubs, monkeypatch):
    lab, gated, _ = hubs
    monkeypatch.setenv("HF_ENDPOINT", gated.address)
    lab.add("ann")
    lab.add("bea")
    with lab.signed_in("ann") as ann, lab.signed_in("bea") as bea:
        Visitor(ann).press("own-model-download", own_model=MODEL, own_model_revision="", own_model_token=TOKEN)
        theirs = Visitor(bea)
        theirs.press("own-model-download", own_model=MODEL, own_model_revision="", own_model_token="")
        downloading = lab.pages._pages["ann"].services.own_models.downloading
        wait_until(lambda: downloading.find(DOWNLOAD).done.is_set())

    assert "not a Hugging Face token" in theirs.answers[1]
    assert find_snapshot(MODEL, None, ModelPart.WEIGHTS, lab.home.for_person("ann")) is not None
    assert find_snapshot(MODEL, None, ModelPart.CONFIG, lab.home.for_person("bea")) is None
