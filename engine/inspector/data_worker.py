"""The inspector's process for data: previews, checks and renders rows. It needs tokenizers and no torch."""

import sys
from pathlib import Path

from engine.data.access import DataAccess
from engine.paths import LoratoryHome
from engine.processes.json_lines import serve


def main() -> None:
    """Answer until stdin closes."""
    # Importing a tokenizer takes torch in as well, where there is one: 240 MB and two seconds for nothing used here.
    # None makes it look as if it were not installed.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from engine.inspector.dataset_handlers import DatasetHandlers

    roots = tuple(Path(root) for root in sys.argv[1:])
    handlers = DatasetHandlers(LoratoryHome.from_environment(), DataAccess(roots or None))
    serve({"preview": handlers.preview, "check": handlers.check, "render": handlers.render})


if __name__ == "__main__":
    main()
