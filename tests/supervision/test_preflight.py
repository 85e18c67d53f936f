from concurrent.futures import ThreadPoolExecutor

import pytest

from loratory.engine.config.derived_defaults import given_settings
from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.results import TestSet
from loratory.engine.data.contract import RowLengths
from loratory.engine.errors import ConfigError, DatasetError, DeviceError, ModelError
from loratory.engine.memory.estimate import Estimator
from loratory.engine.runs.names import words_of
from loratory.engine.runs.projects import save_project_tests
from loratory.engine.runs.provenance import predicted_figures, read_provenance
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.launch import Launcher, Preflight, counted_length
from tests.data.workshop.made_sets import apply, make_set, newest
from tests.supervision.fake_preflight import SHAPE, FakeInspector, config, resolve
from tests.supervision.fake_runs import config_for, cpu


def test_the_key_of_a_judge_is_missed_before_the_model_is_looked_for(preflight, store, monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    judge = {"scorer": "judge", "endpoint": "http://x/v1", "model": "m", "rubric": "?", "key_variable": "JUDGE_API_KEY"}
    with pytest.raises(ConfigError, match="JUDGE_API_KEY is not set here"):
        Launcher(store, preflight).start(
            config(model={"id": "missing/model"}, training={"objective": "grpo", "rewards": [judge]})
        )


def test_a_run_on_a_set_is_pinned_to_its_newest_version(preflight, store, home, tmp_path):
    make_set(home, tmp_path)
    apply(home, {"kind": "exclude", "rows": "1"})

    run = Launcher(store, preflight).start(config(dataset={"source": "set:faq", "mix": {"sample:lab-chats": 1.0}}))

    version = f"set:faq@{newest(home)}"
    assert run.folder.read_config().dataset.source == version
    assert read_provenance(run.folder).dataset == version
    with pytest.raises(DatasetError, match="The set 'other' does not exist"):
        preflight.check(config(dataset={"source": "set:other"}))
    with pytest.raises(ConfigError, match="a job has no sets"):
        preflight.check(config(dataset={"source": "set:faq"}, run={"where": "jobs"}))


def test_a_run_that_can_work_is_pinned_to_what_it_means_now(preflight, store):
    run = Launcher(store, preflight).start(config(), copied_from="20260101-000000-000-abcd")

    stored_config, provenance = run.folder.read_config(), read_provenance(run.folder)
    assert stored_config.model.revision == "a" * 40
    assert stored_config.run.name == provenance.title == f"data-lora-{words_of(run.id)}"
    assert provenance.dataset_fingerprint == "f" * 64
    assert provenance.predicted_bytes is not None
    assert provenance.predicted_bytes > 1_000_000
    assert provenance.libraries["torch"]
    assert (provenance.model_source, provenance.copied_from) == ("some/model", "20260101-000000-000-abcd")


def test_a_run_keeps_which_rows_were_left_out_of_its_data(home, store):
    problem = {"row": 7, "line": 8, "problem": "no answer", "kind": "no_assistant_turn"}
    inspector = FakeInspector(rows=11, dropped=1, problems=[problem], problem_counts={"no_assistant_turn": 1})
    preflight = Preflight(home, inspector, devices=lambda: (cpu(),), resolve=resolve)

    report = Launcher(store, preflight).start(config()).folder.read_dataset_report()

    assert report is not None
    assert [(problem.row, problem.line, problem.problem) for problem in report.problems] == [(7, 8, "no answer")]
    assert store.create(config()).folder.read_dataset_report() is None


def test_a_run_is_predicted_for_the_rows_that_it_trains_on(home, store):
    lengths = RowLengths(tokens=(20, 30, 40) * 40, trained=(10,) * 120, count=120)
    preflight = Preflight(home, FakeInspector(row_lengths=lengths), devices=lambda: (cpu(),), resolve=resolve)

    run = Launcher(store, preflight).start(config())
    provenance, report = read_provenance(run.folder), run.folder.read_dataset_report()

    of_rows = Estimator(SHAPE, cpu(), lengths).need(run.folder.read_config())
    assert report is not None
    assert report.row_lengths == lengths
    assert provenance.predicted_bytes == of_rows.expected_bytes < Estimator(SHAPE, cpu()).need(config()).expected_bytes
    assert provenance.predicted_memory == predicted_figures(of_rows, "cpu")


def test_a_start_before_the_rows_are_counted_gets_the_defaults_that_suit_them(home, store):
    lengths = RowLengths(tokens=(20, 138), trained=(10, 10), count=120, longest_held_out=170)
    inspector = FakeInspector(row_lengths=lengths)
    preflight = Preflight(home, inspector, devices=lambda: (cpu(),), resolve=resolve)

    def started(**training) -> tuple[int, float]:
        chosen = Launcher(store, preflight).start(config(training=training)).folder.read_config().training
        return chosen.max_length, chosen.warmup_steps

    assert started() == (176, 0.1)
    assert started(max_length=1024, warmup_steps=0.03) == (1024, 0.03)
    run = Launcher(store, preflight).start(config(training={"learning_rate": 1e-3}))
    settings = given_settings(run.folder.read_config(), read_provenance(run.folder).open_settings)
    assert settings["training"]["learning_rate"] == 1e-3
    assert not {"max_length", "warmup_steps"} & settings["training"].keys(), "other rows may be longer"
    # As one whose rows a page has counted, which were read at the default: its report is on disk.
    known = config_from_mapping(given_settings(config()), lengths.known)
    assert known.training.max_length == 176
    assert counted_length(known) == 1024
    assert preflight.check(known).config.training == preflight.check(config()).config.training == known.training


@pytest.mark.parametrize(
    ("sections", "error", "text"),
    [
        ({"model": {"id": "missing/model"}}, ModelError, "missing/model"),
        ({"dataset": {"source": "missing.jsonl"}}, DatasetError, "is not there"),
        ({"run": {"devices": [7]}}, DeviceError, "no CUDA device 7"),
    ],
)
def test_what_is_missing_is_an_error_before_anything_was_made(preflight, store, sections, error, text):
    with pytest.raises(error, match=text):
        Launcher(store, preflight).start(config(**sections))
    assert store.ids() == []


@pytest.mark.parametrize(
    ("report", "text"),
    [({"trained_tokens": 0}, "No token of data.jsonl would be trained on"), ({"train_rows": 0}, "are held out")],
)
def test_data_that_teaches_nothing_is_refused(home, store, report, text):
    preflight = Preflight(home, FakeInspector(**report), devices=lambda: (cpu(),), resolve=resolve)
    with pytest.raises(DatasetError, match=text):
        Launcher(store, preflight).start(config())
    assert store.ids() == []


@pytest.mark.parametrize(
    ("source", "rows", "is_refused"),
    [("b", "f", False), ("a", "g", False), ("b", "g", True)],
    ids=["settings again", "another max_length", "changed"],
)
def test_data_that_changed_since_its_preview_is_refused(store, home, source, rows, is_refused):
    preview = FakeInspector(rows=12, source_fingerprint="a", fingerprint="f").check(config().dataset)
    inspector = FakeInspector(source_fingerprint=source, fingerprint=rows)
    launcher = Launcher(store, Preflight(home, inspector, devices=lambda: (cpu(),), resolve=resolve))

    if not is_refused:
        assert launcher.start(config(), preview=preview)
        return
    with pytest.raises(DatasetError) as refusal:
        launcher.start(config(), preview=preview)

    assert refusal.value.what.startswith("The file changed since the preview: ")
    assert refusal.value.what.endswith("had 12 rows and has 10 now.")
    assert refusal.value.fix == "Look at its rows on the Data tab, then start again."


def test_twenty_parallel_starts_with_one_key_start_one_run(preflight, store):
    launcher = Launcher(store, preflight)
    with ThreadPoolExecutor(20) as threads:
        started = list(threads.map(lambda _: launcher.start(config(), "click").id, range(20)))

    assert len(started) == 20
    assert set(started) == set(store.ids())
    assert len(store.ids()) == 1


def test_a_tracker_that_is_not_installed_is_refused_before_the_start(home, inspector, monkeypatch):
    monkeypatch.setattr("loratory.engine.supervision.launch.importlib.util.find_spec", lambda name: None)
    preflight = Preflight(home, inspector, devices=lambda: (cpu(),), resolve=resolve)

    with pytest.raises(ConfigError) as error_info:
        preflight.check(config(training={"report_to": ["wandb"]}))

    assert [problem.field for problem in error_info.value.problems] == ["training.report_to"]
    assert "pip install wandb" in error_info.value.problems[0].message


def test_several_runs_are_filed_at_once_and_once_however_often_they_are_sent(home, preflight, inspector):
    launcher, store = Launcher(RunStore(home, "ann"), preflight), RunStore(home, "ann")
    configs = [config_for(f"Rank {r}", adapter={"r": r, "lora_alpha": 2 * r}) for r in (4, 8, 16)]

    messages: list[str] = []
    first = launcher.start_all(configs, "sweep", on_progress=messages.append)
    again = launcher.start_all(configs, "sweep")

    assert [run.id for run in first] == [run.id for run in again]
    assert [run.folder.read_config().adapter.r for run in first] == [4, 8, 16]
    assert sorted(store.ids()) == [run.id for run in first]
    origins = [read_provenance(run.folder) for run in first]
    assert [origin.swept for origin in origins] == [{"adapter.r": str(r)} for r in (4, 8, 16)]
    assert len({origin.sweep for origin in origins}) == 1
    assert inspector.checks == 3
    assert any(message.startswith("Run 2 of 3: ") for message in messages)


def test_a_sweep_with_one_run_that_cannot_work_files_none(home, preflight):
    configs = [config_for("Good"), config_for("Bad", dataset={"source": "missing.jsonl"})]

    with pytest.raises(DatasetError):
        Launcher(RunStore(home, "ann"), preflight).start_all(configs, "sweep")
    assert RunStore(home, "ann").ids() == []


def test_an_adapter_to_start_from_that_is_not_there_is_named_before_a_run_is_made(preflight, inspector):
    values = config_for().model_dump(mode="json")
    config = config_from_mapping(values | {"adapter": values["adapter"] | {"warm_start": "nowhere"}})

    with pytest.raises(ConfigError, match="nowhere holds no adapter"):
        preflight.check(config)

    assert inspector.checks == 0


def test_the_test_sets_of_the_project_are_part_of_the_run_and_checked_as_its_own(home, store, inspector, tmp_path):
    ann = home.for_person("ann")
    mine, foreign = ann.uploads / "mine.jsonl", tmp_path / "foreign.jsonl"
    sample = config(
        model={"id": "smollm2-135m-instruct"}, dataset={"source": "sample:loratory-faq"}, run={"project": "P"}
    )

    def start(source):
        save_project_tests(
            store, "P", [TestSet.model_validate({"source": str(source), "scorers": [{"scorer": "number"}]})]
        )
        preflight = Preflight(ann, inspector, devices=lambda: (cpu(),), resolve=resolve)
        return Launcher(store, preflight).start(sample).folder.read_config()

    assert [test.source for test in start(mine).evaluation.tests] == [str(mine.resolve())]
    with pytest.raises(ConfigError, match=r"evaluation\.tests"):
        start(foreign)
