"""The inspector's process for data: previews, checks and renders rows. It needs tokenizers and no torch."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.data.files.access import DataAccess
from engine.paths import LoratoryHome
from engine.processes.answering import serve
from engine.processes.limits import limit_memory

# What rows, tokenizers and indexes of rows may take beyond the imports; reading itself stays below a third of it. Each core
# brings threads whose stacks count, although they are hardly touched.
_MEMORY_BYTES = (5 << 28) + (os.cpu_count() or 1) * (16 << 20)


@contextlib.contextmanager
def torch_hidden() -> Iterator[None]:
    """Let transformers believe that torch is not installed; what it found out while being imported, it never asks again.

    Importing a tokenizer takes torch in as well, where there is one: 240 MB and two seconds for nothing used here.
    """
    known = sys.modules.get("torch")
    sys.modules["torch"] = None  # type: ignore[assignment]  # what Python's import system reads as "not there"
    try:
        yield
    finally:
        if known is None:
            del sys.modules["torch"]
        else:
            sys.modules["torch"] = known


def main() -> None:
    """Answer until stdin closes."""
    with torch_hidden():
        from engine.inspector.worker.data import DatasetHandlers

    limit_memory(_MEMORY_BYTES)
    roots = tuple(Path(root) for root in sys.argv[1:])
    handlers = DatasetHandlers(LoratoryHome.from_environment(), DataAccess(roots or None))
    serve(
        {
            "preview": handlers.preview,
            "columns": handlers.columns,
            "find": handlers.find,
            "check": handlers.check,
            "fetch": handlers.fetch,
            "held_out": handlers.held_out,
            "render": handlers.render,
        }
    )


if __name__ == "__main__":
    main()
