"""Steps cover every row once an epoch, in an order that depends on seed and epoch alone."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.contract import RowLengths
from loratory.engine.data.largest_pass import largest_pass
from loratory.engine.data.step_plan import EpochPlanner, Pass, PlanSettings, join_rows, pack_rows


def make_settings(**values) -> PlanSettings:
    defaults = {
        "seed": 7,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "max_length": 100,
        "train_sampling_strategy": "random",
        "batching": "joined",
    }
    of_training = {name: value for name, value in (defaults | values).items() if name in TrainingConfig.model_fields}
    others = {name: value for name, value in (defaults | values).items() if name not in of_training}
    return PlanSettings(TrainingConfig(**of_training), **others)


def random_lengths(count=57, longest=100, seed=0) -> list[int]:
    generator = random.Random(seed)
    return [generator.randint(1, longest) for _ in range(count)]


def plan(lengths, epoch=0, **values):
    return list(EpochPlanner(lengths, make_settings(**values)).steps(epoch))


def rows_of(steps) -> list[int]:
    return [row for step in steps for forward_pass in step.passes for row in forward_pass.rows]


def trained_rows_of(steps) -> list[int]:
    return [
        row for step in steps for forward_pass in step.passes if forward_pass.is_trained for row in forward_pass.rows
    ]


GROUPED = {"batching": "padded", "train_sampling_strategy": "group_by_length", "gradient_accumulation_steps": 1}


@pytest.mark.parametrize(
    "values", [{}, {"batching": "padded"}, {"packing": True}, GROUPED, GROUPED | {"gradient_accumulation_steps": 4}]
)
@pytest.mark.parametrize("count", [1, 7, 57, 401])
def test_every_row_comes_once_an_epoch(values, count):
    planner = EpochPlanner(random_lengths(count, longest=40), make_settings(**values))

    for epoch in range(3):
        steps = list(planner.steps(epoch))
        assert sorted(rows_of(steps)) == list(range(count))
        assert len(steps) == planner.steps_per_epoch
        if "packing" not in values:
            full = 2 * values.get("gradient_accumulation_steps", 3)
            assert [len(rows_of([step])) for step in steps[:-1]] == [full] * (len(steps) - 1)


@pytest.mark.parametrize("values", [{}, GROUPED])
def test_the_order_is_a_function_of_seed_and_epoch(values):
    lengths = random_lengths(300)
    first = plan(lengths, 2, **values)

    assert plan(lengths, 2, **values) == first
    assert plan(lengths, 3, **values) != first
    assert plan(lengths, 2, **values, seed=8) != first


def test_a_joined_pass_never_holds_more_than_a_batch_of_the_longest_rows():
    settings = make_settings()
    lengths = random_lengths(200, longest=100)

    for step in EpochPlanner(lengths, settings).steps(0):
        for forward_pass in step.passes:
            assert sum(lengths[row] for row in forward_pass.rows) <= settings.tokens_per_pass


def padding_share(lengths, steps) -> float:
    """Return which part of what goes through the model is padding."""
    passes = [forward_pass.rows for step in steps for forward_pass in step.passes]
    padded = sum(max(lengths[row] for row in rows) * len(rows) for rows in passes)
    return 1 - sum(lengths) / padded


def test_padded_passes_hold_rows_of_like_length():
    lengths = [10, 90, 11, 91, 12, 92]
    (step,) = plan(lengths, batching="padded")

    assert padding_share(lengths, [step]) <= 0.21
    assert all(len(forward_pass.rows) <= 2 for forward_pass in step.passes)


def test_rows_of_like_length_share_a_step_where_they_are_padded():
    lengths = random_lengths(1000)

    assert padding_share(lengths, plan(lengths, **GROUPED | {"train_sampling_strategy": "random"})) > 0.2
    assert padding_share(lengths, plan(lengths, **GROUPED)) < 0.02


def test_grouped_steps_come_in_no_order_of_length():
    lengths = random_lengths(1000)
    longest = [max(lengths[row] for row in rows_of([step])) for step in plan(lengths, **GROUPED)]

    rises = sum(before < after for before, after in itertools.pairwise(longest))
    assert 0.4 < rises / len(longest) < 0.6
    halves = longest[: len(longest) // 2], longest[len(longest) // 2 :]
    assert abs(sum(halves[0]) - sum(halves[1])) < 0.1 * sum(longest)


def test_a_rows_company_changes_from_epoch_to_epoch():
    planner = EpochPlanner(random_lengths(400), make_settings(**GROUPED))

    steps = [{tuple(sorted(rows_of([step]))) for step in planner.steps(epoch)} for epoch in range(2)]

    assert len(steps[0] & steps[1]) < len(steps[0]) / 4


def test_grouped_shares_of_a_step_are_of_like_length():
    lengths = random_lengths(400)
    settings = [make_settings(**GROUPED, world_size=2, rank=rank) for rank in range(2)]
    shares = [list(EpochPlanner(lengths, share).steps(0)) for share in settings]

    assert sorted(rows_of(shares[0]) + rows_of(shares[1])) == list(range(400))
    tokens = [[sum(lengths[row] for row in rows_of([step])) for step in share] for share in shares]
    apart = sum(abs(left - right) for left, right in zip(*tokens, strict=True))
    assert apart < 0.02 * sum(lengths)


def test_joined_rows_come_at_random_whatever_the_strategy():
    lengths = random_lengths(300)
    joined = make_settings(train_sampling_strategy="group_by_length")

    assert list(EpochPlanner(lengths, joined).steps(0)) == plan(lengths)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("rows", [1, 13, 14, 15, 33])
def test_every_process_reads_in_every_step_and_no_row_is_trained_twice(rows, packing):
    settings = [make_settings(world_size=8, rank=rank, packing=packing) for rank in range(8)]
    shares = [list(EpochPlanner([90] * rows, share).steps(0)) for share in settings]

    assert all(step.passes for share in shares for step in share)
    learned = [row for share in shares for row in trained_rows_of(share)]
    assert sorted(learned) == list(range(rows))


def test_a_process_without_a_row_of_its_own_reads_the_shortest():
    (step,) = plan([9, 3, 7], world_size=4, rank=3)

    assert step.passes == (Pass((1,), is_trained=False),)


@pytest.mark.parametrize("seed", range(5))
def test_packing_fills_sequences_and_cuts_no_row(seed):
    lengths = [100, 100, *random_lengths(300, longest=60, seed=seed)]

    packed = pack_rows(range(302), lengths, 100)

    assert sorted(row for rows in packed for row in rows) == list(range(302))
    assert all(sum(lengths[row] for row in rows) <= 100 for rows in packed)
    fewest = -(-sum(lengths) // 100)
    assert len(packed) <= fewest * 1.05 + 1


def test_joined_passes_are_of_like_size_and_a_row_as_long_as_a_pass_gets_one():
    sizes = [len(forward_pass.rows) for forward_pass in join_rows(range(30), [10] * 30, 140)]

    assert sizes == [10, 10, 10]  # 300 tokens, 140 at most
    assert [forward_pass.rows for forward_pass in join_rows([0, 1, 2], [100, 100, 100], 100)] == [(0,), (1,), (2,)]


def test_a_plan_needs_rows_and_packing_needs_joining():
    with pytest.raises(ValueError, match="joined"):
        make_settings(packing=True, batching="padded")
    with pytest.raises(ValueError, match="no row"):
        EpochPlanner([], make_settings())


BEGINNINGS: dict[str, dict[str, Any]] = {
    "joined": {"train_sampling_strategy": "group_by_length"},
    "padded": {"batching": "padded"},
    "grouped": GROUPED,
    "packed": {"packing": True},
}


@pytest.mark.parametrize("later_batching", ["joined", "padded", "grouped"])
@pytest.mark.parametrize("first_batching", BEGINNINGS)
def test_a_pinned_order_gives_each_step_the_same_rows_however_they_pass(first_batching, later_batching):
    lengths = random_lengths(200, longest=50)
    before = make_settings(**BEGINNINGS[first_batching])
    now = make_settings(**BEGINNINGS[later_batching] | {"seed": 99, "max_length": 80}, pinned_order=before.order)

    for epoch in range(2):
        expected = [sorted(rows_of([step])) for step in EpochPlanner(lengths, before).steps(epoch)]
        assert [sorted(rows_of([step])) for step in EpochPlanner(lengths, now).steps(epoch)] == expected


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_another_number_of_processes_shares_the_steps_that_were_pinned(processes, strategy):
    lengths = random_lengths(100)
    before = make_settings(batching="padded", train_sampling_strategy=strategy, world_size=2)
    shares = [plan(lengths, 1, world_size=processes, rank=rank, pinned_order=before.order) for rank in range(processes)]
    whole = EpochPlanner(lengths, make_settings(batching="padded", pinned_order=before.order)).steps(1)

    for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert sorted(trained_rows_of(parts)) == sorted(rows_of([step]))


def row_lengths(tokens, count=None) -> RowLengths:
    return RowLengths(tokens=tuple(tokens), trained=tuple(length // 3 for length in tokens), count=count or len(tokens))


@pytest.mark.parametrize("values", [{}, {"batching": "padded"}, {"packing": True}, {"num_train_epochs": 1}], ids=str)
def test_the_largest_pass_of_known_rows_is_the_one_that_the_trainer_takes(values):
    rows, settings = row_lengths(random_lengths(seed=3)), make_settings(**values)
    planner = EpochPlanner(rows.tokens, settings)
    epochs = range(round(settings.training.num_train_epochs))
    passes = [
        [rows.tokens[row] for row in forward_pass.rows]
        for epoch in epochs
        for step in planner.steps(epoch)
        for forward_pass in step.passes
    ]
    padded = settings.batching == "padded"
    sizes = [len(lengths) * max(lengths) if padded else sum(lengths) for lengths in passes]

    largest = largest_pass(rows, settings)

    assert (len(largest.lengths) * max(largest.lengths) if padded else sum(largest.lengths)) == max(sizes)
    assert largest.sizes == len(set(sizes))
    assert largest.trained_tokens == max(sum(length // 3 for length in lengths) for lengths in passes)


def test_answers_that_share_a_prompt_are_counted_as_they_pass():
    rows = RowLengths(
        tokens=(30, 40, 150, 20, 12, 12), trained=(5,) * 6, count=3, per_row=2, kind="pairs", shared=(25, 15, 12)
    )
    settings = make_settings(per_device_train_batch_size=3, sequences_per_row=2)

    once = largest_pass(rows, replace(settings, shares_prompts=True))
    twice = largest_pass(rows, settings)

    assert sorted(once.lengths) == [12, 45, 105]  # 150 are cut at 100
    assert sorted(twice.lengths) == [12, 12, 20, 30, 40, 100]
    for largest in (once, twice):
        assert (largest.sequences, largest.longest, largest.trained_tokens) == (6, 100, 30)


def test_rows_are_cut_and_steps_that_a_run_never_takes_do_not_count():
    rows = row_lengths([10] * 30 + [5000])

    assert max(largest_pass(rows, make_settings()).lengths) == 100
    assert sum(largest_pass(rows, make_settings(max_steps=1, seed=1)).lengths) == 60


def test_a_step_of_more_rows_than_are_known_holds_more_of_the_like():
    settings = make_settings(per_device_train_batch_size=64, gradient_accumulation_steps=1)

    assert sum(largest_pass(row_lengths([10] * 8, count=1_000_000), settings).lengths) == 640
    assert sum(largest_pass(row_lengths([10] * 8), settings).lengths) == 80
