"""Two people of a lab: what one sends about the other's runs is refused, and the server's secrets are found nowhere."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import audit_log_path, forget_secrets
from loratory.engine.config.run import DatasetConfig
from loratory.engine.errors import DatasetError
from loratory.engine.inspector.session import Inspector
from loratory.engine.lab.rules import set_shared
from loratory.engine.paths import LAB, searches_working_folder
from loratory.engine.processes.spawn import has_hub_login
from loratory.engine.runs.job import JobSpec, start_worker
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.store import RunStore
from tests.browser.real_server import contents_of
from tests.fake_launcher import a_device
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.front.lab import fake_services_of, running_lab

REPOSITORY = Path(__file__).resolve().parents[3]
CANARY = "canary-5e1f"
SECRET_TITLE = "only for the eyes of ann"
_SECRETS = {
    "HF_TOKEN": f"hf_{CANARY}", "HUGGING_FACE_HUB_TOKEN": CANARY, "WANDB_API_KEY": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY,
    "DATABASE_URL": f"postgres://x:{CANARY}@db", "MY_PASSWORD": CANARY, "LORATORY_SMTP_PASSWORD": CANARY, "GITHUB_PAT": CANARY,
    "CREDENTIALS_DIRECTORY": f"/run/{CANARY}",
}  # fmt: skip


INSPECTORS: list[Inspector] = []  # of the lab's pages, each with processes of its own


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    before = dict(os.environ)
    root = tmp_path_factory.mktemp("lab")
    login = tmp_path_factory.mktemp("hf")
    (login / "token").write_text(CANARY)
    os.environ.update(_SECRETS, HF_HOME=str(login))
    try:
        forget_secrets()

        def services_of(own, person):
            INSPECTORS.append(Inspector(own))
            return replace(fake_services_of(own, person), inspector=INSPECTORS[-1])

        with running_lab(root, services_of) as running:
            running.add("ann")
            running.add("bea")
            yield running
        for inspector in INSPECTORS:
            inspector.close()
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def foreign(lab):
    return write_run(RunStore(lab.home, "ann"), a_config(run__name=SECRET_TITLE), InventedRun())


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def values_for(config, dependency, text):
    """Values for the inputs of a handler: the text wherever a client can put one."""
    kinds = {part["id"]: part for part in config["components"]}
    values = []
    for number in dependency["inputs"]:
        part = kinds[number]
        if part["type"] in ("textbox", "dropdown", "html", "browserstate", "radio", "downloadbutton"):
            values.append(text)
        elif part["type"] in ("number", "slider"):
            values.append(part["props"].get("value") or part["props"].get("minimum") or 1)
        else:
            values.append(part["props"].get("value") if part["type"] != "state" else None)
    return values


def every_answer(client, text):
    """Send a text to every handler of a person's page, as values and as what was picked in a list."""
    config = client.get("/config").json()
    lists = {part["id"] for part in config["components"] if part["type"] == "html"}
    assert len(config["dependencies"]) > 100
    for dependency in config["dependencies"]:
        if not dependency["backend_fn"]:
            continue
        picks = [text]
        if any(part in lists and event == "click" for part, event in dependency["targets"]):
            picks += [f"{action}:{text}" for action in ("out", "anyway", "first", "compare")]
        for pick in picks:
            body = {
                "data": values_for(config, dependency, text), "fn_index": dependency["id"], "session_hash": "attack",
                "event_data": {"pick": pick, "index": 0, "value": text, "selected": True},
            }  # fmt: skip
            answer = client.post("/gradio_api/run/predict", json=body)
            yield dependency, answer


@pytest.mark.e2e
@pytest.mark.parametrize("prefix", ["", "ann/"])
def test_no_handler_does_anything_with_the_run_of_another(lab, foreign, prefix):
    before = contents(foreign.folder.path)
    successes = 0
    with lab.signed_in("bea") as bea:
        assert bea.get("/").status_code == 200
        for dependency, answer in every_answer(bea, prefix + foreign.id):
            assert SECRET_TITLE not in answer.text, dependency["api_name"]
            successes += answer.status_code == 200

    assert successes > 60, "the handlers were reached"
    assert contents(foreign.folder.path) == before
    assert foreign.folder.path.is_dir()
    assert not (lab.home.server / "resume" / f"ann~{foreign.id}").exists()


@pytest.mark.e2e
def test_a_shared_run_is_read_and_copied_and_nothing_else(lab, foreign):
    audit = AuditLog(audit_log_path(lab.home))
    person = lab.accounts.person("ann")
    set_shared(foreign, person, True, audit)
    before = contents(foreign.folder.path)
    try:
        with lab.signed_in("bea") as bea:
            bea.get("/")
            answers = [answer.text for _, answer in every_answer(bea, f"ann/{foreign.id}")]
        after = contents(foreign.folder.path)
    finally:
        set_shared(foreign, person, False, audit)

    assert any(SECRET_TITLE in text for text in answers)
    assert after == before


@pytest.mark.exhaustive(quick=0)
def test_secrets_of_the_server_are_in_no_page_file_or_process(lab, foreign, tmp_path):
    assert not has_hub_login()
    assert not searches_working_folder()
    with lab.signed_in("ann") as ann:
        answers = [ann.get(path).text for path in ("/", "/config", "/sign-in", "/theme.css")]
    (inspector, *_) = INSPECTORS
    page = inspector.preview(DatasetConfig(source="sample:loratory-faq"))
    assert page.rows
    processes = [Path(f"/proc/{pid}") for pid in inspector.pids]
    assert processes
    for process in processes:
        answers += [(process / "environ").read_bytes().decode(), (process / "cmdline").read_bytes().decode()]
        assert "HF_HUB_DISABLE_IMPLICIT_TOKEN=1" in (process / "environ").read_text()
    assert CANARY not in "".join(answers).replace(f"/run/{CANARY}", "")
    assert not [path for path, content in contents_of(lab.home.root).items() if CANARY.encode() in content]


def press(client, button, run_id):
    """Press a button by its id on the page, with one run wherever a handler takes one, and choices as they are."""
    config = client.get("/config").json()
    choices = {part["id"]: part["props"].get("value") for part in config["components"] if part["type"] == "radio"}
    (number,) = (part["id"] for part in config["components"] if part["props"].get("elem_id") == button)
    for dependency in config["dependencies"]:
        if [number, "click"] in dependency["targets"] and dependency["backend_fn"]:
            values = zip(dependency["inputs"], values_for(config, dependency, run_id), strict=True)
            data = [choices.get(number, value) for number, value in values]
            body = {"data": data, "fn_index": dependency["id"], "session_hash": "own"}
            client.post("/gradio_api/run/predict", json=body)


def test_what_a_person_did_to_a_run_is_in_the_audit_log(lab):
    lab.add("eva")
    store = RunStore(lab.home, "eva")
    stories = [InventedRun(state=state) for state in ("completed", "stopped", "queued")]
    past_run, stopped, waiting = (write_run(store, a_config(), story).id for story in stories)
    with lab.signed_in("eva") as eva:
        eva.get("/")
        for button, run_id in (
            ("start-anyway", waiting), ("stop", waiting), ("really-cancel", waiting), ("stop", past_run),
            ("resume", stopped), ("really-delete", stopped), ("run-share", past_run), ("really-delete", past_run),
        ):  # fmt: skip
            press(eva, button, run_id)

    entries = [entry for entry in AuditLog(audit_log_path(lab.home)).entries() if entry.person == "eva"]
    assert [(entry.kind, entry.subject.removeprefix("eva/")) for entry in entries] == [
        ("run started", waiting), ("run stopped", waiting), ("run stopped", waiting),
        ("run resumed", stopped),  # it waits again: not deleted
        ("run shared", past_run), ("run deleted", past_run),
    ]  # fmt: skip
    assert store.get(stopped).id == stopped


def test_a_worker_of_the_inspector_reads_nothing_of_another(lab):
    (lab.home.for_person("bea").uploads).mkdir(parents=True, exist_ok=True)
    secret = lab.home.for_person("bea").uploads / "secret.jsonl"
    secret.write_text(json.dumps({"text": SECRET_TITLE}) + "\n")
    with lab.signed_in("ann") as ann:
        ann.get("/")
    inspector = next(inspector for inspector in INSPECTORS if inspector._home.owner == "ann")
    texts = set()
    for source in (str(secret), str(secret) + "-not-there", "../bea/secret.jsonl", "/etc/passwd"):
        with pytest.raises(DatasetError) as error_info:
            inspector.preview(DatasetConfig(source=source))
        texts.add(str(error_info.value))
    assert len(texts) == 1


def test_what_a_page_computes_is_kept_with_its_person(lab):
    own = lab.home.for_person("ann")
    own.uploads.mkdir(parents=True, exist_ok=True)
    (own.uploads / "mine.jsonl").write_text(json.dumps({"instruction": SECRET_TITLE, "output": "x"}) + "\n")
    inspector = Inspector(own)
    try:
        assert inspector.check(DatasetConfig(source="mine.jsonl")).rows == 1
    finally:
        inspector.close()

    remaining = [path for path in (lab.home.root / "page-cache").rglob("*") if path.is_file()]
    assert [path for path in remaining if path.is_relative_to(own.cache)]
    assert not (lab.home.for_person("bea").cache / "datasets").exists()
    assert not (lab.home.shared_cache / "datasets").exists()


def test_a_training_worker_of_a_person_gets_no_login_no_matter_who_starts_it(lab, monkeypatch):
    for name, value in _SECRETS.items():  # as a supervisor on the machine's command line would have them
        monkeypatch.setenv(name, value)
    config = a_config(model__id="owner/gated", training__report_to=["wandb"])
    run = RunStore(lab.home, "ann").create(config, Provenance(person="ann"))
    code = "import os; print(dict(os.environ))"
    process = start_worker(JobSpec(run, config, (a_device(),), 1), lambda _: [sys.executable, "-c", code])
    process.wait(300)

    log = run.folder.log.read_text()
    assert "LORATORY_RUN" in log
    assert CANARY not in log


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of a process")
def test_a_lab_that_is_started_with_secrets_begins_again_without_them(tmp_path):
    path = tmp_path / "page.sock"
    command = [sys.executable, "app.py", "--lab", "--public-url", "https://gpu.lab.example", "--socket", str(path)]
    environment = {**os.environ, **_SECRETS, "LORATORY_HOME": str(tmp_path / "home")}
    environment.pop(LAB, None)
    server = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert "gpu.lab.example" in server.stdout.readline()
        first = Path(f"/proc/{server.pid}/environ").read_text()
        assert CANARY not in first
        assert "LORATORY_HOME=" in first
        assert CANARY not in Path(f"/proc/{server.pid}/cmdline").read_text()
    finally:
        server.terminate()
        server.communicate()
    assert server.returncode == 0
    assert not path.exists()
