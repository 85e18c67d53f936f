"""Which rows are held out."""

import random

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.split import Split, draw_split


def split(digests, *, seed=1, parts=(), weights=(1.0,), chosen=(), **settings):
    config = DatasetConfig(source="x", **settings)
    result = draw_split(digests, config, seed, parts=parts, weights=weights, chosen=chosen)
    return Split(result.train.tolist(), result.held_out.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_no_row_is_on_one_side_and_its_duplicate_on_the_other(seed):
    draw = random.Random(seed)
    digests = [draw.randrange(60) for _ in range(300)]

    result = split(digests, seed=seed, eval_fraction=0.2)

    assert sorted(result.train + result.held_out) == list(range(300))
    assert not {digests[i] for i in result.train} & {digests[i] for i in result.held_out}
    assert 40 <= len(result.held_out) <= 60


def test_the_seed_draws_the_same_rows_again_and_another_one_others():
    digests = list(range(100))

    assert split(digests, eval_fraction=0.1) == split(digests, eval_fraction=0.1)
    assert split(digests, eval_fraction=0.1) != split(digests, eval_fraction=0.1, seed=2)
    assert len(split(digests, eval_fraction=0.1).held_out) == 10


@pytest.mark.parametrize(
    ("digests", "eval_fraction", "held_out"),
    [
        ([1], 0.5, 0),  # one group: nothing can be held out
        ([1, 1, 1], 0.5, 0),
        ([1, 2], 0.01, 1),  # at least one row where that is possible
        ([1, 1, 1, 2, 2, 2, 2], 0.1, (3, 4)),  # groups stay whole, even where they are larger than the share
        ([1, 2, 3], 0.0, 0),
    ],
)
def test_small_datasets(digests, eval_fraction, held_out):
    result = split(digests, eval_fraction=eval_fraction)

    assert len(result.held_out) in (held_out if isinstance(held_out, tuple) else (held_out,))
    assert result.train


def test_a_sample_is_drawn_first_and_evenly():
    result = split(list(range(10_000)), max_samples=1000, eval_fraction=0.1)

    assert (len(result.train), len(result.held_out)) == (900, 100)
    halves = sum(position < 5000 for position in result.train + result.held_out)
    assert 400 < halves < 600
    assert split([1, 2, 3], max_samples=10, eval_fraction=0).train == [0, 1, 2]


def test_weights_repeat_and_thin_what_is_trained_on_and_thin_what_is_held_out():
    parts = [0] * 100 + [1] * 100 + [2] * 100
    digests = list(range(300))

    result = split(digests, parts=parts, weights=(1.0, 0.5, 2.5), eval_fraction=0.1)

    train = [sum(parts[i] == part for i in result.train) for part in range(3)]
    before = split(digests, eval_fraction=0.1).held_out
    counts_before, held_counts = (
        [sum(parts[i] == part for i in held_out) for part in range(3)] for held_out in (before, result.held_out)
    )
    assert train == [
        100 - counts_before[0],
        round(0.5 * (100 - counts_before[1])),
        round(2.5 * (100 - counts_before[2])),
    ]
    assert held_counts == [counts_before[0], round(0.5 * counts_before[1]), counts_before[2]]
    assert len(set(result.held_out)) == len(result.held_out)
    assert set(result.held_out) <= set(before)
    assert not set(before) & set(result.train)


def test_held_out_rows_of_their_own_are_never_thinned_and_one_stays():
    digests, parts = list(range(100)), [0] * 50 + [1] * 50

    chosen = split(digests, parts=parts, weights=(1.0, 0.1), eval_fraction=0, chosen=range(60, 70))
    last = split(digests, parts=[1] * 100, weights=(1.0, 0.01), eval_fraction=0.02)

    assert chosen.held_out == list(range(60, 70))
    assert len(last.held_out) == 2


def test_the_draw_does_not_depend_on_the_order_of_rows_and_hardly_on_other_rows():
    digests = [random.Random(number).getrandbits(64) for number in range(200)]

    def held_out_digests(rows):
        return {rows[position] for position in split(rows, eval_fraction=0.2).held_out}

    assert held_out_digests(digests) == held_out_digests(digests[::-1])
    assert len(held_out_digests(digests) & held_out_digests([*digests, 1, 2, 3])) >= 37
    assert held_out_digests([0, 2**64 - 1, 2**63])
