"""Fine-tune language models from Python: what the page does, as functions.

    import loratory

    run = loratory.train("quickstart-cpu", {"training.max_steps": 20})
    run.events().plot(x="step", y="loss")

`loratory.engine.interface.workspace` has them. It is imported at the first use, as parts of this package are imported
where that would take too long.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratory.engine.interface.workspace import (
        Chat,
        EngineError,
        Estimate,
        Message,
        Run,
        Workspace,
        chat,
        estimate,
        inspect,
        render,
        run,
        runs,
        train,
    )

__all__ = [
    "Chat",
    "EngineError",
    "Estimate",
    "Message",
    "Run",
    "Workspace",
    "chat",
    "estimate",
    "inspect",
    "render",
    "run",
    "runs",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'loratory' has no attribute {name!r}")
    return getattr(importlib.import_module("loratory.engine.interface.workspace"), name)
