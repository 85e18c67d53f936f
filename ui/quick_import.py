"""Importing Gradio without the stubs that it writes for editors, which take nearly half of its import."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MODULE = "gradio.component_meta"
_WRITER = "create_or_modify_pyi"


def import_without_stubs() -> None:
    """To be called before Gradio is imported; does nothing afterwards, or where Gradio writes no stubs.

    At each import Gradio parses the source of every component and of its stub, to see whether that has to be written anew in
    the folder where Gradio is installed. Nothing reads the stubs while it runs.

    Source: `ComponentMeta.__new__` and `create_or_modify_pyi`, gradio/component_meta.py.
    """
    if "gradio" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as Python itself does, once, and has it changed when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if hasattr(module, _WRITER):
            setattr(module, _WRITER, _write_nothing)


def _write_nothing(*_: Any) -> None:
    return None
