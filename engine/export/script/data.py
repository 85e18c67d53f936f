"""The half of a stand-alone script that makes token ids of a dataset: only what this dataset and these settings need."""

from engine.config.run import RunConfig
from engine.export.script.encoding import encoding_code
from engine.export.script.rows import DataFacts, rows_code


def data_code(config: RunConfig, facts: DataFacts, *, takes_parts: bool = True) -> str:
    """Functions from `read_rows` to `encode` and `held_out`.

    Args:
        config: Of the run.
        facts: About the rows.
        takes_parts: Whether the chat template may want the words of a turn as a list of parts.
    """
    pieces = [rows_code(config, facts), encoding_code(config, facts, takes_parts=takes_parts)]
    if config.dataset.eval_fraction > 0:
        pieces.append(_SPLIT + (_TOGETHER if facts.has_duplicates else _SMALLEST))
    return "\n\n".join(piece.strip("\n") + "\n" for piece in pieces)


_SPLIT = '''
def held_out(rows):
    """For each row whether it is held out: those whose mixed digests are the smallest."""
    places = np.array([digest(row) for row in rows], dtype=np.uint64)
    places ^= np.random.default_rng(SEED).integers(2**64, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of SplitMix64
        places ^= places >> np.uint64(shift)
        places *= np.uint64(factor)
    places ^= places >> np.uint64(31)
    if len(np.unique(places)) < 2:
        raise SystemExit(
            "The rows that are left all say the same, so that none can be held out. "
            "Write this script anew, with other rows or with eval_fraction 0."
        )
'''

_SMALLEST = """    count = max(1, round(EVAL_FRACTION * len(rows)))
    return places <= np.partition(places, count - 1)[count - 1]
"""

_TOGETHER = """    # Rows that say the same stand on one side together.
    values, sizes = np.unique(places, return_counts=True)
    chosen, room = [], max(1, round(EVAL_FRACTION * len(rows)))
    for value, size in zip(values[:-1], sizes[:-1]):
        if size <= room:
            chosen.append(value)
            room -= size
    return np.isin(places, chosen or values[:-1][[np.argmin(sizes[:-1])]])
"""
