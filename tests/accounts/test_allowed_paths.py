"""Whatever a person of a lab types or sends as a path: it leads to their own folders and the lab's, or is refused in one sentence."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.target import plan_load
from loratory.engine.config.results import ExportConfig
from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.data.source import SourceOptions, open_source
from loratory.engine.errors import ConfigError, EngineError, ModelError, StorageError, WorkerError
from loratory.engine.evaluation.job import EvaluationJob
from loratory.engine.export.contract import ExportRequest
from loratory.engine.export.job import ExportJob
from loratory.engine.export.push import PushJob
from loratory.engine.lab.rules import lab_problems, with_allowed_paths, with_allowed_scorers
from loratory.engine.models.inventory_cache import architecture_values, known_inventory
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LAB, REFUSAL, AllowedPaths, LoratoryHome
from loratory.engine.runs.provenance import find_warm_start
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.launch import Preflight
from loratory.engine.supervision.memory_measurement import MeasurementJob
from loratory.ui.backend.results import ResultWork
from loratory.ui.backend.transfers import Transfers
from tests.invented_runs import InventedRun, a_config, write_run

# Each leads out of Ann's folders, to something that exists here or not; {root} is the home.
ATTACKS = [
    "..", "../bea/secret.jsonl", "../../accounts.sqlite3", "../../../../../../etc/passwd", "./../bea", "x/../../bea/secret.jsonl",
    "/etc/passwd", "//etc/passwd", "/etc/nothing-there", "/", "/dev/zero", "/proc/self/environ", "/proc/self/root/etc/passwd",
    "/proc/self/cwd/pyproject.toml", "/proc/self/fd/0", "~", "~/.ssh/id_rsa", "~/.cache/huggingface/token", "~root/.bashrc",
    "~nobody-here/x", "{root}", "{root}/accounts.sqlite3", "{root}/audit.jsonl", "{root}/nothing-there", "{root}/uploads",
    "{root}/uploads/bea/secret.jsonl", "{root}/uploads/bea/nothing-there", "{root}/uploads/annex/secret.jsonl",
    "{root}/uploads/ann/../bea/secret.jsonl", "{root}/uploads/ann/link.jsonl", "{root}/uploads/ann/folder/etc/passwd", "./link.jsonl",
    "folder/etc/passwd", "./folder", "./circle/x", "{root}/exports/bea", "{root}/runs/bea", "{root}/transfers/bea/upload.jsonl",
    "{root}/cache", "{root}/models", "{root}/shared", "./shared", "shared/../accounts.sqlite3", "shared/data/../../uploads/bea/secret.jsonl",
    "{root}/shared/models/../../runs/bea",
]  # fmt: skip
DATA_ATTACKS = [*ATTACKS, " /etc/passwd ", "/etc/passwd\0.jsonl", "x" * 3_000 + "/../../../bea/secret.jsonl"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> LoratoryHome:
    """Ann's home in a lab where there is much to find."""
    monkeypatch.setenv(LAB, "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lab = LoratoryHome(tmp_path / "lab")
    ann, bea = lab.for_person("ann"), lab.for_person("bea")
    folders = (
        ann.uploads,
        bea.uploads,
        ann.exports,
        bea.exports,
        bea.transfers,
        lab.shared_data,
        lab.shared_models,
        lab.models,
    )
    for folder in (*folders, lab.root / "uploads" / "annex", ann.own_runs, lab.cache):  # fmt: skip
        folder.mkdir(parents=True)
    for file in (
        bea.uploads / "secret.jsonl",
        lab.root / "uploads" / "annex" / "secret.jsonl",
        bea.transfers / "upload.jsonl",
    ):
        file.write_text('{"text": "the secret of bea"}\n')
    for file in (lab.root / "accounts.sqlite3", lab.root / "audit.jsonl"):
        file.write_text("secret")
    for folder in (ann.uploads, ann.exports):
        (folder / "link.jsonl").symlink_to(bea.uploads / "secret.jsonl")
        (folder / "folder").symlink_to("/")
        (folder / "circle").symlink_to(folder / "circle")
    (ann.uploads / "rows.jsonl").write_text('{"text": "of ann"}\n')
    write_run(RunStore(lab, "bea"), a_config(), InventedRun())
    return ann


@dataclass
class Reader:
    """One field that takes a path: what happens with a text in it."""

    field: str
    use: Callable[[LoratoryHome, str], object]
    writes: bool = False  # below the exports, where shared/ is a name like any other

    def __repr__(self) -> str:
        return self.field


def _preflight(home: LoratoryHome, **changes: object) -> object:
    def never(*_: object, **__: object) -> object:
        raise AssertionError("something was opened before the paths were checked")

    inspector = type("NoInspector", (), {"check": never, "module_inventory": never})()
    return Preflight(home, inspector, devices=lambda: (), resolve=never).check(a_config(**changes))  # type: ignore[arg-type]


def _export(home: LoratoryHome, text: str) -> object:
    run = RunStore(home, "ann").list() or [write_run(RunStore(home, "ann"), a_config(), InventedRun())]
    target = ChatTarget.of_run(run[0].folder.path)
    return ExportJob(home, ExportRequest(target=target, folder=Path(text), settings=ExportConfig())).run()


def _results(home: LoratoryHome) -> ResultWork:
    return ResultWork(home, partial(EvaluationJob, home), partial(ExportJob, home), partial(PushJob, home))


READERS = [
    Reader("dataset.source at the start", lambda home, text: _preflight(home, dataset__source=text)),
    Reader("dataset.mix at the start", lambda home, text: _preflight(home, dataset__mix={text: 1.0})),
    Reader("model.id at the start", lambda home, text: _preflight(home, model__id=text)),
    Reader("adapter.warm_start at the start", lambda home, text: _preflight(home, adapter__warm_start=text)),
    Reader("dataset in a worker", lambda home, text: open_source(DatasetConfig(source=text), SourceOptions(home=home))),
    Reader("model in a worker", lambda home, text: resolve_model(ModelConfig(id=text), home)),
    Reader("model's configuration", lambda home, text: architecture_values(ModelConfig(id=text), home)),
    Reader("warm start in a worker", lambda home, text: find_warm_start(text, home.own_runs, home)),
    Reader("adapter folder in Chat", lambda home, text: plan_load(ChatTarget.of_run(Path(text)), home)),
    Reader("model in Chat", lambda home, text: plan_load(ChatTarget.of_model(ModelConfig(id=text)), home)),
    Reader("measured model", lambda home, text: MeasurementJob(home, a_config(model__id=text), None).run()),  # type: ignore[arg-type]
    Reader("export folder on the page", lambda home, text: _results(home).allowed_folder(text), writes=True),
    Reader("export folder in the engine", _export, writes=True),
]  # fmt: skip


@pytest.mark.parametrize("reader", READERS, ids=repr)
def test_every_field_refuses_every_way_out_in_the_same_words(home, reader):
    for attack in ATTACKS:
        if reader.writes and attack.startswith(("shared", "./shared")):
            continue
        text = attack.format(root=home.root)
        with pytest.raises(EngineError) as error_info:
            reader.use(home, text)
        if isinstance(error_info.value, ConfigError):
            messages = [problem.message for problem in error_info.value.problems]
            assert all(REFUSAL[0][1:].rstrip(".") in message for message in messages), (attack, messages)
            assert not any("bea" in message or "secret" in message for message in messages)
        else:
            assert (error_info.value.what, error_info.value.fix) == REFUSAL, (attack, error_info.value)


@pytest.mark.parametrize("attack", DATA_ATTACKS)
def test_a_dataset_outside_is_never_read(home, attack):
    with pytest.raises(EngineError) as error_info:
        open_source(
            DatasetConfig.model_construct(source=attack.format(root=home.root), mix={}, split=""),
            SourceOptions(home=home),
        )
    assert "bea" not in str(error_info.value)
    assert "annex" not in str(error_info.value)


def test_a_model_outside_is_not_known_either(home):
    for attack in ATTACKS:
        assert known_inventory(ModelConfig(id=attack.format(root=home.root)), home) is None


@pytest.mark.parametrize("attack", ATTACKS)
def test_only_what_was_uploaded_becomes_an_upload(home, attack):
    home.transfers.mkdir(parents=True)
    path = (
        home.transfers / attack.format(root=home.root).lstrip("/")
        if attack.startswith(".")
        else Path(attack.format(root=home.root))
    )
    with pytest.raises(StorageError):
        Transfers(home).keep_upload(path)
    assert (home.root / "uploads" / "bea" / "secret.jsonl").exists()


def test_what_exists_and_what_does_not_are_refused_the_same_way(home):
    pairs = (
        ("/etc/passwd", "/etc/nothing-there"),
        (f"{home.root}/uploads/bea/secret.jsonl", f"{home.root}/uploads/bea/no"),
    )
    for there, missing in pairs:
        for reader in READERS:
            messages = []
            for text in (there, missing):
                with pytest.raises(EngineError) as error_info:
                    reader.use(home, text)
                messages.append(str(error_info.value))
            assert messages[0] == messages[1], reader


def test_own_files_and_the_labs_are_read(home):
    (home.shared_data / "common.jsonl").write_text('{"text": "of all"}\n')
    elsewhere = home.root.parent / "large-models"
    (elsewhere / "base").mkdir(parents=True)
    (home.shared_models / "large").symlink_to(elsewhere)
    allowed = AllowedPaths(home)

    assert allowed.read("rows.jsonl") == home.uploads / "rows.jsonl"
    assert allowed.read(str(home.uploads / "rows.jsonl")) == home.uploads / "rows.jsonl"
    assert allowed.read("shared/data/common.jsonl") == home.shared_data / "common.jsonl"
    assert allowed.read("shared/models/large/base") == elsewhere / "base", "where an admin's own link leads"
    assert allowed.write("result") == home.exports / "result"
    config = with_allowed_paths(a_config(dataset__source="rows.jsonl", model__id="shared/models/large/base"), home)
    assert (config.dataset.source, config.model.id) == (str(home.uploads / "rows.jsonl"), str(elsewhere / "base"))
    assert lab_problems(config, home) == []


def test_names_on_the_hub_are_not_paths_whatever_lies_in_the_working_folder(home, tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = a_config(dataset__source="owner/name", model__id="owner/name")

    assert lab_problems(config, home) == []
    assert with_allowed_paths(config, home) == config


def test_scorers_of_a_dataset_are_refused_as_elsewhere(home, tmp_path):
    outside = DatasetConfig(source="-", scorers=[{"scorer": "file", "path": "/etc/passwd"}])
    judge = DatasetConfig(
        source="-", scorers=[{"scorer": "judge", "endpoint": "http://x/v1", "model": "m", "rubric": "?"}]
    )
    for dataset in (outside, judge):
        with pytest.raises(ConfigError, match=r"training\.rewards"):
            with_allowed_scorers(dataset, home)
    assert (
        with_allowed_scorers(DatasetConfig(source="-", scorers=[{"scorer": "number"}]), home).scorers[0].scorer
        == "number"
    )
    assert with_allowed_scorers(judge, LoratoryHome(tmp_path)) == judge


def test_files_of_scorers_and_test_sets_are_confined_and_judges_refused(home):
    outside, own = str(home.root / "uploads" / "bea" / "secret.jsonl"), str(home.uploads / "rows.jsonl")

    def problems_of(path: str, **scorer: str) -> list[str]:
        rewards = [{"scorer": "file", "path": path}] if not scorer else [scorer]
        test = {"source": path, "scorers": [{"scorer": "equals"}]}
        config = a_config(training__objective="grpo", training__rewards=rewards, evaluation__tests=[test])
        return [problem.field for problem in lab_problems(config, home)]

    assert problems_of(outside) == ["training.rewards", "evaluation.tests"]
    assert problems_of(own) == []
    judge = {"scorer": "judge", "endpoint": "http://169.254.169.254/v1", "model": "m", "rubric": "good"}
    assert problems_of(own, **judge) == ["training.rewards"]


def test_where_a_lab_has_no_sandbox_code_is_refused(home, monkeypatch):
    def refuse(_: str) -> None:
        raise WorkerError("Namespaces are missing.", "Use another scorer.")

    monkeypatch.setattr("loratory.engine.lab.rules.require_isolation", refuse)
    rewards = [{"scorer": "file", "path": str(home.uploads / "rows.jsonl")}]
    (problem,) = lab_problems(a_config(training__objective="grpo", training__rewards=rewards), home)
    assert "no sandbox" in problem.message


def test_the_run_of_another_is_not_a_start(home):
    (foreign,) = RunStore(home, "bea").ids()
    problems = lab_problems(a_config(adapter__warm_start=foreign), home)
    assert [problem.field for problem in problems] == ["adapter.warm_start"]
    with pytest.raises(ModelError):
        plan_load(ChatTarget.of_run(home.runs / "bea" / foreign), home)


def test_a_guest_names_nothing_and_trains_a_little(home):
    guest = LoratoryHome(home.root).for_person("ann", "guest")
    fields = {
        "dataset.source": a_config(dataset__source=str(home.uploads / "rows.jsonl")),
        "model.id": a_config(model__id="owner/name"),
        "training.max_steps": a_config(training__max_steps=100_000),
        "evaluation.tests": a_config(evaluation__tests=[{"source": "owner/name", "scorers": [{"scorer": "equals"}]}]),
    }
    for field, config in fields.items():
        assert field in {problem.field for problem in lab_problems(config, guest)}
    assert lab_problems(a_config(), guest) == []
    with pytest.raises(StorageError):
        Transfers(guest).keep_upload(guest.transfers / "rows.jsonl")
    with pytest.raises(ModelError):
        plan_load(ChatTarget.of_model(ModelConfig(id="owner/name")), guest)


def test_at_home_every_path_of_the_user_is_fine(tmp_path):
    at_home = LoratoryHome(tmp_path)
    assert AllowedPaths.for_home(at_home) is None
    assert (
        lab_problems(a_config(dataset__source="/etc/passwd", model__id="/", training__report_to=["wandb"]), at_home)
        == []
    )
