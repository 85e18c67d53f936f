"""`loratory inspect` and `loratory render`, as a person and as a script see them."""

import json

import pytest
from typer.testing import CliRunner

from loratory.engine.cli import build_app
from loratory.engine.errors import ConfigError, DatasetError


@pytest.fixture
def run(home):
    app = build_app(("loratory.engine.commands.data",))
    app.callback()(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"q": f"Question {number}?", "a": f"Answer {number}."} for number in range(10)] + [{"q": "x", "a": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MAP = ("--map", "instruction=q", "--map", "output=a")


def test_inspect_without_a_model_counts_rows_and_reports_that_it_counts_no_tokens(run, file):
    report = json.loads(run("inspect", file, *MAP, "--json").stdout)

    assert (report["format"], report["rows"], report["kept"], report["dropped"]) == ("alpaca", 11, 10, 1)
    assert report["problems"][0].items() >= {"row": 10, "line": 11}.items()
    assert report["trained_tokens"] is None
    assert "give --model" in run("inspect", file, *MAP).stdout


def test_inspect_with_a_model_counts_tokens_that_add_up(run, file, tiny_model_folder):
    report = json.loads(run("inspect", file, *MAP, "--model", tiny_model_folder, "--max-length", 25, "--json").stdout)

    assert report["trained_tokens"] + report["masked_tokens"] == report["total_tokens"]
    assert set(report["token_lengths"]) >= {"min", "p50", "p95", "max", "over_max_length"}
    assert report["token_lengths"]["over_max_length"] > 0


def test_inspect_tells_people_what_is_left_out_and_why(run, file):
    output = run("inspect", file, *MAP).stdout

    assert "Kept 10, left out 1." in output
    assert "line 11" in output
    assert "the answer is empty" in output


def test_a_role_is_left_out_by_an_empty_name(run, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"instruction": "Say hi.", "input": "SECRET", "output": "Hi."}) + "\n")
    reports = []
    for left_out in ((), ("--map", "input=")):
        report = json.loads(run("inspect", file, *left_out, "--json").stdout)
        reports.append((report["format"], report["kept"], report["fingerprint"]))

    assert [entry[:2] for entry in reports] == [("alpaca", 1)] * 2
    assert reports[0][2] != reports[1][2]


TALK = [("customer", "My order is late."), ("note", "angry"), ("agent", "I am sorry.")]
ROLES = ("--map-role", "customer=user", "--map-role", "Agent=assistant", "--map-role", "note=")


def test_roles_of_the_rows_are_mapped_and_unknown_ones_are_named(run, tmp_path, tiny_model_folder):
    file = tmp_path / "talks.jsonl"
    known = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [[{"from": name, "value": text} for name, text in TALK], known]
    file.write_text("".join(json.dumps({"conversations": turns}) + "\n" for turns in rows))

    assert "Unknown role 'agent' in 1 rows, such as: I am sorry." in run("inspect", file).stdout
    report = json.loads(run("inspect", file, *ROLES, "--json").stdout)
    assert (report["kept"], report["unknown_roles"]) == (2, {})
    text = run("render", file, *ROLES, "--row", 1, "--model", tiny_model_folder).stdout
    assert "⟦I am sorry.<|im_end|>⟧" in text
    assert "angry" not in text


def test_render_prints_what_training_sees(run, file, tiny_model_folder):
    rendering = json.loads(run("render", file, *MAP, "--row", 4, "--model", tiny_model_folder, "--json").stdout)

    assert rendering.keys() >= {"text", "input_ids", "labels", "tokens"}
    assert len(rendering["input_ids"]) == len(rendering["labels"]) == len(rendering["tokens"])
    assert rendering["text"].endswith("Answer 3.<|im_end|>\n")
    assert len(rendering["sequences"]) == 1
    learned = [token for token, label in zip(rendering["tokens"], rendering["labels"], strict=True) if label != -100]
    assert learned[-1] == "<|im_end|>"

    output = run("render", file, *MAP, "--row", 4, "--model", tiny_model_folder).stdout
    assert "⟦Answer 3.<|im_end|>⟧" in output


def test_subset_split_and_revision_of_a_hub_dataset_are_asked_for(run, monkeypatch, tiny_model_folder):
    requests = []

    def remember(_, config, *rest, **options):
        requests.append((config.source, config.subset, config.split, config.revision))
        raise DatasetError("Asked.", "Nothing.")

    monkeypatch.setattr("loratory.engine.inspector.session.Inspector.render", remember)
    options = ("--subset", "en", "--split", "test", "--revision", "v2", "--model", tiny_model_folder)

    result = run("render", "owner/name", "--row", 1, *options)

    assert isinstance(result.exception, DatasetError)
    assert requests == [("owner/name", "en", "test", "v2")]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--map", "output"), ConfigError, "--map: 'output' is not of the form"),
        (("--map-role", "=user"), ConfigError, "--map-role: '=user' is not of the form"),
        ((*MAP, "--map-role", "q=boss"), ConfigError, "role_map.q: 'boss' is not one of"),
        (("--map", "output=b", "--map", "instruction=q"), DatasetError, "names the column 'b'"),
        ((), DatasetError, ""),  # the columns q and a fit no format by themselves
    ],
)
def test_wrong_arguments_are_reported_with_a_message(run, file, arguments, error, message):
    result = run("inspect", file, *arguments)

    assert isinstance(result.exception, error)
    assert message in str(result.exception)


def test_a_row_that_is_not_there_is_reported_missing(run, file, tiny_model_folder):
    result = run("render", file, *MAP, "--row", 99, "--model", tiny_model_folder)

    assert "Row 99 does not exist" in str(result.exception)
