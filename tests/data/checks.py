"""A dataset's whole check in one call."""

from engine.data.passes.check import check_steps, finish


def check_dataset(config, options, *, seed=42, renderer=None):
    """Return the report of one pass over every row."""
    return finish(check_steps(config, options, seed=seed, renderer=renderer))
