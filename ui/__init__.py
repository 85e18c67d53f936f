"""The page. Import this package before Gradio: see `import_without_stubs`."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_STUB_MODULE, _STUB_WRITER = "gradio.component_meta", "create_or_modify_pyi"


def import_without_stubs() -> None:
    """Keep Gradio from writing stubs for editors, which takes nearly half of its import.

    At each import Gradio 6.25 to 6.31 parses the source of every component and of its stub, to see whether to write the
    stub again where Gradio is installed. Nothing reads the stubs while it runs. Without effect once Gradio is imported.

    Source: `ComponentMeta.__new__` and `create_or_modify_pyi`, gradio/component_meta.py.
    """
    if "gradio" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as Python itself does, once, and changes it when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _STUB_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            execute = spec.loader.exec_module

            def execute_and_change(module: ModuleType) -> None:
                execute(module)
                if hasattr(module, _STUB_WRITER):
                    setattr(module, _STUB_WRITER, lambda *_: None)

            spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


import_without_stubs()
