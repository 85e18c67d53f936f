"""What a sweep concludes, from rows of runs that never ran."""

import itertools
import json

import pytest
from pydantic_core import to_json

from loratory.engine.config.load import config_from_mapping
from loratory.engine.runs.summary import RunSummary
from loratory.engine.runs.sweep import keep_alpha_ratio, sweep_configs, sweep_origins
from loratory.engine.runs.sweep_result import mean_interval, sweep_result

_NUMBERS = itertools.count()


def row(loss: float | None = None, state: str = "completed", seed: str = "", rate: str = "", **changes) -> RunSummary:
    swept = {"training.learning_rate": rate} if rate else {}
    swept |= {"training.seed": seed} if seed else {}
    number = next(_NUMBERS)
    values = {"id": f"run-{number}", "name": f"run {number}", "held_out": f"rows of seed {seed}", "sweep": "abcd1234"}
    return RunSummary(**{"owner": "ann", "state": state, "swept": swept, "best_eval_loss": loss, **values, **changes})


def conclusion(*rows: RunSummary) -> str:
    return sweep_result(rows[::-1], "abcd1234").conclusion


@pytest.mark.parametrize(
    ("values", "half_width"),
    [
        ([1.0, 2.0, 3.0], 2.4841),  # t(2) = 4.303, s = 1; as scipy.stats.t.interval has it
        ([0.0, 1.0], 6.3531),
        (list(range(12)), 2.2909),  # t(11) = 2.201
        (list(range(31)), 3.3352),  # t(30) = 2.042
    ],
)
def test_an_interval_is_students(values, half_width):
    assert mean_interval(values).half_width == pytest.approx(half_width, rel=2e-3)
    assert str(mean_interval([2.4, 2.5, 2.6])) == "2.500 ± 0.248"
    assert str(mean_interval([2.4])) == "2.400"


def test_the_best_is_compared_with_the_second_seed_by_seed():
    """Seeds differ more than rates do, and each rate has the same ones."""
    losses = {"1": 2.0, "2": 2.5, "3": 3.0}
    low = [row(loss, seed=seed, rate="2e-3") for seed, loss in losses.items()]
    high = [row(loss + 0.1 + 0.001 * loss, seed=seed, rate="1e-3") for seed, loss in losses.items()]
    noisy = [
        row(loss + shift, seed=seed, rate="1e-3")
        for (seed, loss), shift in zip(losses.items(), (0.3, -0.2, 0.2), strict=True)
    ]

    assert conclusion(*high, *low) == (
        "Best: learning rate 2e-3: held-out loss 2.500 ± 1.242 (3 seeds, 95%). Second: learning rate 1e-3, 0.103 ± 0.001 "
        "higher; seed by seed, more than noise. 6 of 6 runs ended."
    )
    assert "0.100 ± 0.657 higher; seed by seed, within noise." in conclusion(*low, *noisy)


def test_one_seed_cannot_show_what_is_noise():
    text = conclusion(row(1.2, rate="1e-3"), row(1.1, rate="2e-3"))

    assert text.startswith(
        "Best: learning rate 2e-3: held-out loss 1.100. Second: learning rate 1e-3, 0.100 higher; several"
    )


def test_seeds_alone_give_one_interval():
    assert conclusion(*(row(loss, seed=str(loss)) for loss in (2.4, 2.5, 2.6))) == (
        "Best: all runs: held-out loss 2.500 ± 0.248 (3 seeds, 95%). 3 of 3 runs ended."
    )


def test_open_runs_are_counted_and_combinations_with_fewer_seeds_are_not_ranked():
    rows = [row(2.0, seed="1", rate="1e-3"), row(2.2, seed="2", rate="1e-3"), row(1.0, seed="1", rate="2e-3")]
    result = sweep_result([row(None, "running", seed="2", rate="2e-3"), *rows[::-1]], "abcd1234")

    assert result.conclusion.endswith("(2 seeds, 95%). 3 of 4 runs ended.")
    assert result.best.values == {"training.learning_rate": "1e-3"}
    assert [combination.losses for combination in result.combinations] == [{"1": 2.0, "2": 2.2}, {"1": 1.0}]
    assert conclusion(row(None, "queued"), row(None, "running")) == (
        "No completed run has a held-out loss yet. 0 of 2 runs ended."
    )


def test_runs_that_did_not_complete_are_named_and_not_counted():
    """The loss of a run that was stopped is that of fewer steps."""
    text = conclusion(
        row(1.2, rate="1e-3"), row(0.5, "stopped", rate="2e-3", name="halfway"), row(None, "failed", name="lost")
    )

    assert text == (
        "Best: learning rate 1e-3: held-out loss 1.200. 3 of 3 runs ended. Not completed: halfway (stopped); lost (failed)."
    )


def test_losses_on_other_rows_are_not_compared():
    result = sweep_result([row(1.2, rate="1e-3"), row(1.1, rate="2e-3", held_out="other rows")], "abcd1234")

    assert result.best is None
    assert "not comparable" in result.conclusion
    assert [combination.loss.mean for combination in result.combinations] == [1.1, 1.2]


def test_other_runs_are_no_part_of_it_and_the_result_is_json():
    rows = [row(1.2, rate="1e-3"), row(0.2, sweep="other"), row(0.1, sweep="")]

    assert sweep_result(rows, "") is None
    assert sweep_result(rows, "unknown") is None
    best = json.loads(to_json(sweep_result(rows, "abcd1234")))["best"]
    assert best["loss"] == {"mean": 1.2, "half_width": None}
    assert best["values"] == {"training.learning_rate": "1e-3"}


def test_runs_note_the_settings_that_differ_and_follow_from_no_other():
    mapping = {"model": {"id": "some/model"}, "dataset": {"source": "data.jsonl"}}
    configs = sweep_configs(mapping, ["training.seed=1,2", "adapter.r=8,16"])
    origins = sweep_origins(keep_alpha_ratio(configs, config_from_mapping(mapping)), "key")

    assert [origin["swept"] for origin in origins] == [
        {"adapter.r": rank, "training.seed": seed} for seed in ("1", "2") for rank in ("8", "16")
    ]
    assert len({origin["sweep"] for origin in origins}) == 1
    assert origins[0]["sweep"] != sweep_origins(configs, "another key")[0]["sweep"]
    assert sweep_origins(configs[:1], "key")[0]["swept"] == {}
