"""Taking a result away: in every form, verified, listed with the run, and in one archive."""

import zipfile
from pathlib import Path

import pytest
from gradio import EventData

from loratory.engine.config.load import config_from_mapping, mapping_from_yaml
from loratory.engine.errors import RunError, StorageError
from loratory.engine.evaluation.server_check import Evidence, Fit, ServerCheck
from loratory.engine.export.contract import ExportRecord, PerplexityCheck
from loratory.engine.export.kinds import KINDS
from loratory.ui.backend.run_reader import FINAL
from loratory.ui.backend.transfers import Transfers, list_files
from loratory.ui.tabs.export import ExportTab
from loratory.ui.tabs.export_formats import ADAPTER, EXACT, FOLDERS, FORMS, HUB, SCRIPT, SERVER, YAML
from loratory.ui.views.run_details import loading_script, render_export, render_verification
from tests.fake_results import FakeExport, a_verification
from tests.invented_runs import InventedRun, a_config, write_run
from tests.tiny_model import make_tiny_model
from tests.ui.changes import Changes

WAIT_SECONDS = 300

MERGED, GGUF, COMPRESSED = (KINDS[name].title for name in ("merged", "gguf", "compressed"))


@pytest.fixture
def tab(laid_out) -> ExportTab:
    return laid_out(ExportTab)


@pytest.fixture
def run(services):
    return write_run(services.runs, a_config(run__name="faq: rank 16 / <b>"), InventedRun())


def show(tab, run_id, form, number=0) -> Changes:
    return Changes(tab, tab.show(run_id, FINAL, form, number))


def job(tab, changes) -> Changes:
    return Changes(tab.job, changes._updates)


def folder(tab, run, form, checkpoint=FINAL) -> str:
    return str(tab.show(run.id, checkpoint, form, 0)[tab.forms.folder])


def offer(tab, *values) -> Changes:
    return Changes(tab, tab.offer(*values))


def start(tab, run, form, folder="", repository="", checkpoint=FINAL, private=True, verify=True, shard=5.0, url=""):
    """Return the status after a start, as the page has it, once the work ended."""
    settings = ("float32", "q8_0", "fp8", shard, False, "adapter", private, verify, url, "")
    handler = tab.job.shown_in_status(tab.start)
    updates = handler(run.id, checkpoint, form, 0, "local", folder, repository, "", *settings)
    work = tab.page.services.results.exporting.find(run.id)
    if work is not None:
        assert work.done.wait(WAIT_SECONDS)
    return updates[tab.job.status]


def test_runs_that_hold_something_are_offered(tab, services, run):
    write_run(services.runs, a_config(), InventedRun(state="failed", steps=3))

    changes = offer(tab, "", None)

    assert [value for _, value in changes.run["choices"]] == [run.id]
    assert [value for _, value in changes.checkpoint["choices"]] == [FINAL, "step-120", "step-90"]
    assert (changes.empty["visible"], changes.whole["visible"]) == (False, True)


def test_without_a_result_it_reports_when_there_will_be_one(tab):
    changes = offer(tab, "", None)

    assert (changes.empty["visible"], changes.whole["visible"]) == (True, False)
    assert "Nothing to export yet" in tab.empty.value


def test_a_new_folder_is_proposed_for_each_form_and_used_if_none_is_named(tab, services, run):
    assert folder(tab, run, MERGED) == str(services.home.exports / "faq-rank-16-b-merged")
    assert folder(tab, run, ADAPTER, "step-90").endswith("faq-rank-16-b-step-90-adapter")
    assert "trouble" not in start(tab, run, ADAPTER, folder=" ")
    assert "exports/faq-rank-16-b-adapter" in show(tab, run.id, ADAPTER).result


@pytest.mark.parametrize(("form", "file"), [(ADAPTER, "adapter_model"), (MERGED, "model.safetensors"), (GGUF, ".gguf")])
def test_a_form_is_written_verified_and_listed(tab, run, form, file):
    assert "trouble" not in start(tab, run, form, folder="mine")

    changes = show(tab, run.id, form)

    assert file in changes.result
    assert "20 of 20 greedy answers" in changes.result
    assert "0.0312" in changes.result
    assert "exports/mine" in changes.result
    assert Changes(tab.archive, changes._updates).panel["visible"]
    assert f"loratory export {run.id}" in changes.use


@pytest.mark.e2e
def test_an_exact_script_is_written_into_a_folder_and_listed(tab, services, tiny_model_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"instruction": "Add {n} and 1.", "output": "{n + 1}"}}\n' for n in range(12)))
    config = a_config(model__id=str(tiny_model_folder), dataset__source=str(rows))
    run = write_run(services.runs, config, InventedRun())

    status = start(tab, run, EXACT, folder="mine")

    work = services.results.exporting.find(run.id)
    assert work.error is None, status
    target = services.home.exports / "mine"
    assert {"train.py", "rows.parquet"} <= {path.name for path in target.iterdir()}
    compile((target / "train.py").read_text(), "train.py", "exec")
    changes = show(tab, run.id, EXACT)
    assert "rows.parquet" in changes.result
    assert "exports/mine" in changes.result


def test_the_hub_gets_what_was_asked_for_and_its_refusal_is_reported_once(tab, services, run):
    assert "forbidden" not in start(tab, run, HUB, repository="me/forbidden")
    assert "this token may not write there" in job(tab, show(tab, run.id, HUB)).status

    start(tab, run, HUB, repository=" me/faq ", private=False)

    request = services.results.exporting.find(run.id).job.request
    assert (request.repository, request.settings.private) == ("me/faq", False)
    changes = show(tab, run.id, HUB)
    assert 'href="https://huggingface.co/me/faq"' in changes.result
    assert not Changes(tab.archive, changes._updates).panel["visible"]


def test_a_name_that_is_taken_makes_room_for_another_and_what_was_typed_since_stays(tab, services, run):
    folder_name = folder(tab, run, ADAPTER)
    start(tab, run, ADAPTER, folder=folder_name)

    assert tab.refresh(run.id, FINAL, ADAPTER, 0, folder_name, 0)[tab.forms.folder] == f"{folder_name}-2"
    assert tab.forms.folder not in tab.refresh(run.id, FINAL, ADAPTER, 0, "mine", 0)
    assert tab.forms.folder not in tab.refresh(run.id, FINAL, ADAPTER, 0, folder_name, 1)  # nothing new was made


def test_the_newest_is_shown_and_earlier_ones_can_be_picked(tab, run):
    start(tab, run, ADAPTER, folder="one")
    first = show(tab, run.id, ADAPTER)
    start(tab, run, MERGED, folder="two", checkpoint="step-90")

    changes = Changes(tab, tab.refresh(run.id, FINAL, MERGED, 1, "two", first.exports))
    assert "exports/two" in changes.result
    assert "Merged model of step-90" in changes.result
    assert changes.before.count("data-pick") == 2
    changes = Changes(tab, tab.pick(EventData(None, {"pick": "1"}), run.id, MERGED))
    assert "exports/one" in changes.result
    assert tab.shown_folder(run.id, changes.number).name == "one"


def test_while_it_is_written_nothing_else_of_this_run_is(tab, services, run):
    slow = FakeExport(services.results.export, pace_seconds=5)
    services.results.exporting.start(run.id, "An export", slow)

    changes = job(tab, show(tab, run.id, ADAPTER))
    assert changes.stop["visible"]
    assert not changes.start["interactive"]
    with pytest.raises(RunError, match="An export is under way"):
        tab.start(run.id, FINAL, ADAPTER, 0, "local", "mine", "", "", *[None] * 10)

    tab.job.end(run.id)
    assert services.results.exporting.find(run.id).done.wait(WAIT_SECONDS)
    assert "nothing was written" in job(tab, show(tab, run.id, ADAPTER)).status
    assert job(tab, show(tab, run.id, SCRIPT)).status == "", "a text is not exported"


@pytest.mark.parametrize("folder", ["/etc/mine", "../runs/mine", "."])
def test_what_a_browser_names_as_folder_is_confined(tab, services, run, folder):
    assert 'class="trouble"' in start(tab, run, MERGED, folder=folder)
    assert services.results.exporting.find(run.id) is None


def test_prefix_tuning_reports_why_it_cannot_be_merged(tab, services):
    prefix = write_run(services.runs, a_config(adapter__method="prefix_tuning"), InventedRun())

    changes = show(tab, prefix.id, MERGED)._updates

    assert "Prefix tuning cannot be merged" in changes[tab.forms.about]
    assert not any(changes[panel]["visible"] for panel in tab.forms.panels[1:])
    assert "Prefix tuning cannot be merged" in start(tab, prefix, GGUF, folder="mine")
    assert "cannot be merged" not in show(tab, prefix.id, ADAPTER)._updates[tab.forms.about]
    assert "--to adapter --out" in show(tab, prefix.id, ADAPTER).use


def test_a_whole_model_has_no_adapter_to_take(tab, services):
    full = write_run(services.runs, a_config(adapter__method="none"), InventedRun())

    assert "trained the whole model" in show(tab, full.id, ADAPTER)._updates[tab.forms.about]
    assert "trained the whole model" not in show(tab, full.id, MERGED)._updates[tab.forms.about]


def test_every_form_shows_its_own_settings(tab, run):
    panels = (tab.forms.to_folder, tab.forms.of_kind, tab.forms.hub, tab.forms.verify)
    visible, settings = dict[str, list[bool]](), dict[str, set[str]]()
    for form in FORMS:
        updates = show(tab, run.id, form)._updates
        visible[form] = [updates[panel]["visible"] for panel in panels]
        settings[form] = {name for name, part in tab.forms.kind_settings.items() if updates[part]["visible"]}

    assert visible[ADAPTER] == [True, False, False, True]
    assert visible[MERGED] == visible[GGUF] == visible[COMPRESSED] == [True, True, False, True]
    assert visible[HUB] == [False, False, True, True]
    assert visible[SCRIPT] == visible[YAML] == visible[SERVER] == [False] * 4
    assert {form: settings[form] for form in FORMS} == {
        **{form: set[str]() for form in FORMS},
        **{form: set(kind.settings) for form, kind in FOLDERS.items()},
    }
    assert show(tab, run.id, SERVER)._updates[tab.forms.server["url"]]["visible"]
    assert not show(tab, run.id, HUB)._updates[tab.forms.server["url"]]["visible"]


def test_the_command_line_is_that_of_the_chosen_form(tab, run):
    texts = {form: str(show(tab, run.id, form).use) for form in FOLDERS}

    for form, kind in FOLDERS.items():
        assert f"--to {kind.name} --out" in texts[form]


def test_a_server_is_checked_and_the_verdict_stays_with_the_run(tab, run):
    def check(url):
        return start(tab, run, SERVER, url=url)

    assert "No server checked yet" in show(tab, run.id, SERVER).result
    assert "Server" in check("")
    assert tab.page.services.results.exporting.find(run.id) is None
    evidence = Evidence(
        server="ollama", model="support<b>", prompts=20, completion={}, more_tokens=(1, 1), more_of_turns=1,
        chat={"tuned": Fit(tokens=90, likeliest=0.9, excess=0.1), "base": Fit(tokens=90, likeliest=0.4, excess=2.0)},
    )  # fmt: skip
    result = ServerCheck(evidence=evidence, time="2026-12-03T07:00:00+00:00")
    (run.folder.path / "server-check.json").write_text(result.model_dump_json())

    html = show(tab, run.id, SERVER).result
    assert "BOS token twice" in html
    assert "Modelfile" in html
    assert "<b>support" not in html
    assert "90.0%" in html
    assert tab.show(run.id, "step-1", SERVER, 0)[tab.result] != html


def test_sizes_and_missing_programs_are_shown_before_a_gguf_is_written(tab, services, tmp_path, monkeypatch):
    base = make_tiny_model(tmp_path / "base")
    run = write_run(services.runs, a_config(model__id=str(base)), InventedRun())
    monkeypatch.setattr("loratory.engine.export.gguf.llama_cpp.importlib.util.find_spec", lambda name: None)

    sizes = show(tab, run.id, GGUF)._updates[tab.forms.sizes]

    assert sizes["visible"]
    assert "q4_k_m" in sizes["value"]
    assert "fp8" in sizes["value"]
    assert "<code>pip install &#x27;loratory[gguf]&#x27;</code>" in sizes["value"]
    assert "pip install &#x27;loratory[llama-cpp]&#x27;" in sizes["value"]
    assert not show(tab, run.id, MERGED)._updates[tab.forms.sizes]["visible"]


def test_yaml_is_the_whole_configuration(tab, run):
    changes = show(tab, run.id, YAML)._updates

    assert changes[tab.text.panel]["visible"]
    assert not changes[tab.job.buttons]["visible"]
    assert "loratory-faq" in changes[tab.text.text]
    content = Path(changes[tab.text.download]["value"]).read_text()
    assert config_from_mapping(mapping_from_yaml(content)) == a_config(run__name="faq: rank 16 / <b>")


def test_the_script_is_python_and_names_the_run(tab, run, services):
    changes = show(tab, run.id, SCRIPT)._updates

    assert "SFTTrainer" in changes[tab.text.text]
    source = Path(changes[tab.text.download]["value"]).read_text()
    compile(source, "train.py", "exec")
    assert run.id in source


def test_a_run_that_was_deleted_is_reported_as_gone(tab):
    updates = tab.job.shown_in_status(tab.show)("20250101-000000-000-abcd", FINAL, ADAPTER, 0)

    assert list(updates) == [tab.job.status]
    assert "was not found" in updates[tab.job.status]


@pytest.mark.parametrize(
    ("address", "is_link"),
    [("https://hub/me/x", True), ("http://127.0.0.1:1/me/x", True), ("/home/me/x", False), ("javascript:x", False)],
)
def test_only_a_hub_is_a_link_also_one_of_ones_own(address, is_link):
    assert (f'href="{address}"' in render_export(ExportRecord(kind="hub", location=address))) is is_link


def test_an_export_that_differs_is_not_called_good():
    html = render_verification(a_verification(is_good=False))

    assert "It differs from the run." in html
    assert "13 of 20" in html
    assert "It was not compared" in render_verification(None)


def test_answers_that_turned_within_rounding_are_not_called_the_same():
    html = render_verification(a_verification(is_good=True).model_copy(update={"equal_answers": 13}))

    assert "Verified within rounding." in html
    assert "13 of 20 greedy answers are identical" in html
    assert "identical to the run" not in html


def test_a_quantized_file_is_judged_by_its_perplexity():
    perplexity = PerplexityCheck(run=20.5, file=21.11, tokens=1399, on="32 held-out rows")
    quantized = {"allowed_logit_difference": None, "equal_answers": 3, "perplexity": perplexity}
    good = render_verification(a_verification().model_copy(update=quantized))
    bad = render_verification(a_verification(is_good=False).model_copy(update=quantized))

    assert "Verified within quantization" in good
    assert "<b>21.11</b>perplexity, file</div><div><b>20.50</b>perplexity, run" in good
    assert "Perplexity on 32 held-out rows, 1,399 tokens." in good
    assert "allowed for rounding" not in good
    assert "It has another perplexity than the run: 20.50 → 21.11 (+3.0%)" in bad


def test_the_code_is_valid_python_and_names_the_base_that_the_adapter_names(run):
    script = loading_script(run.folder.adapter, "another")

    compile(script, "script", "exec")
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in script
    assert "another" not in script


def test_a_fully_trained_model_is_loaded_without_peft(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    script = loading_script(tmp_path, "base")

    compile(script, "script", "exec")
    assert "peft" not in script


def test_the_archive_holds_the_files_and_nothing_that_a_link_leads_to(run, services, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (run.folder.adapter / "link.txt").symlink_to(secret)

    path = services.transfers.make_archive(run.folder.adapter, "faq: rank 16 / <b>")

    assert path.name == "faq-rank-16-b.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert len(names) == 4
    assert all(name.startswith("faq-rank-16-b/") for name in names)
    assert not any("link" in name for name in names)
    assert list_files(run.folder.adapter) == sorted(name.split("/", 1)[1] for name in names)


def test_what_is_too_large_for_a_download_reports_where_it_lies(run, services):
    transfers = Transfers(services.home, largest_file_bytes=1000)

    with pytest.raises(StorageError, match="Copy its folder"):
        transfers.make_archive(run.folder.adapter, "faq")
    assert not any(services.home.transfers.iterdir())
