"""A dataset's whole check in one go, as the tests of reading ask for it."""

from engine.data.passes.check import check_steps, finish


def check_dataset(config, options, *, seed=42, renderer=None):
    """The report of one pass over every row."""
    return finish(check_steps(config, options, seed=seed, renderer=renderer))
