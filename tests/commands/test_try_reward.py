"""`loratory try-reward` on an invented try: what is printed, and the prompts that are kept."""

import json

import pytest
from typer.testing import CliRunner

from loratory.engine.cli import build_app
from loratory.engine.data.workshop.sets import find_set
from loratory.engine.errors import ConfigError
from tests.data.checks import write_rows
from tests.data.workshop.made_sets import apply, read
from tests.fake_try import FakeTry


@pytest.fixture
def run(home, tmp_path, monkeypatch):
    monkeypatch.setattr("loratory.engine.commands.try_reward.TryRewardJob", FakeTry)
    rows = [{"prompt": f"What is {number} + 0?", "answer": str(number)} for number in range(6)]
    file = write_rows(tmp_path / "sums.jsonl", rows)
    changes = f"dataset.source={file}", "training.objective=grpo", "training.rewards=[{scorer: number}]"
    settings = [word for change in changes for word in ("--set", change)]
    app = build_app(("loratory.engine.commands.try_reward",))
    return lambda *more: CliRunner().invoke(app, ["quickstart-grpo-cpu", *settings, *more])


def test_a_new_set_has_the_prompts_that_were_sometimes_right(run, home):
    result = run("--all-prompts", "--keep-sometimes")

    assert result.exit_code == 0, result.output
    assert "Kept 2 of 4 prompts. Next: --set dataset.source=set:sums" in result.stdout
    assert list(read(home, "set:sums")) == [2, 4, 5, 6]


def test_a_set_keeps_them_in_operations_that_can_be_undone(run, home):
    run("--keep-sometimes")
    selection = json.loads(run("--set", "dataset.source=set:sums", "--keep-sometimes", "--json").stdout)["kept"]

    assert selection["train_on"] == "set:sums"
    assert selection["version"] == find_set(home, "sums").versions[-1].name
    apply(home, *({"kind": "undo", "id": number} for number in (1, 2, *selection["operations"])), name="sums")
    assert list(read(home, "set:sums")) == [1, 2, 3, 4, 5, 6]


def test_rows_of_a_mixture_are_not_filtered(run):
    result = run("--set", "dataset.mix={sample:loratory-sums: 1}", "--keep-sometimes")
    assert isinstance(result.exception, ConfigError)
    assert "filter each alone" in str(result.exception)
