"""The page. Importing it imports Gradio, without what the page has no use for."""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

# Modules that Gradio 6.31 imports for functions that the page does not use, and what it takes from them.
_UNUSED = {
    "pandas": (),  # 66 MiB with pyarrow, for arguments of cached functions
    "gradio.cli": ("deploy",),
    "gradio.external": ("load", "load_chat", "load_openapi"),
    "mcp": (),  # where it is installed, 2 s for a server of its own, which does without it
}


def _import_gradio() -> None:
    """Import Gradio and the page in 1.6 s of processor time instead of 3.8 s."""
    spec = importlib.util.find_spec("gradio")
    assert spec is not None
    assert spec.loader is not None
    gradio = sys.modules["gradio"] = importlib.util.module_from_spec(spec)
    stand_ins = {name: ModuleType(name) for name in _UNUSED if name not in sys.modules}
    for name, module in stand_ins.items():
        vars(module).update(dict.fromkeys(_UNUSED[name]))
    sys.modules.update(stand_ins)
    # Not executed yet. It would write stubs for editors next to the source of each component, and docstrings of its events.
    meta: Any = importlib.import_module("gradio.component_meta")
    events: Any = importlib.import_module("gradio.events")
    meta.create_or_modify_pyi = events.EventListener.set_doc = lambda *_, **__: None
    spec.loader.exec_module(gradio)
    for name in stand_ins:
        del sys.modules[name]


if "gradio" not in sys.modules:
    _import_gradio()
