"""What Gradio imports or makes and the page does not use, kept out of its start; to be prepared before Gradio is imported.

Written for Gradio 6.25 to 6.31. Where a Gradio imports none of it, nothing changes.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict

_Around = Callable[[ModuleType], AbstractContextManager[None]]

# Module that is executed -> modules that it imports for uses that the page has not -> functions that it takes from them.
_UNUSED: Mapping[str, Mapping[str, Sequence[str]]] = {
    "gradio": {
        "gradio.cli": ["deploy"],  # commands
        "gradio.external": ["load", "load_chat", "load_openapi"],  # the Hub's inference clients
    },
    "gradio.caching": {"pandas": []},  # 70 MiB with pyarrow, for arguments of cached functions
    "httpx": {"httpx._main": ["main"]},  # a command: rich and pygments
}
_STUB_MODULE, _STUB_WRITER = "gradio.component_meta", "create_or_modify_pyi"
_EVENTS_MODULE, _MODELS_MODULE = "gradio.events", "fastapi.openapi.models"


def prepare() -> None:
    """Let Gradio start without what the page does not use. Without effect once Gradio is imported."""
    if "gradio" in sys.modules:
        return
    around: dict[str, _Around] = {name: partial(_standing_in, unused_names) for name, unused_names in _UNUSED.items()}
    around |= {_STUB_MODULE: _without_stubs, _EVENTS_MODULE: _without_docs, _MODELS_MODULE: _without_rebuild}
    sys.meta_path.insert(0, _Finder(around))


class _StandIn(ModuleType):
    """Imports the module that it replaces when something of it is used."""

    def __init__(self, name: str, functions: Sequence[str]) -> None:
        super().__init__(name)
        for function in functions:
            setattr(self, function, partial(self._call, function))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system itself
            raise AttributeError(name)
        return getattr(self._module(), name)

    def _call(self, function: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self._module(), function)(*arguments, **options)

    def _module(self) -> ModuleType:
        _remove(self)
        return importlib.import_module(self.__name__)


@contextmanager
def _standing_in(unused_names: Mapping[str, Sequence[str]], _module: ModuleType) -> Iterator[None]:
    """Have modules stood in for while another is executed; later imports get the modules themselves.

    Pydantic models of what is executed are built at their first use; most have none here.
    """
    stand_ins = [_StandIn(name, functions) for name, functions in unused_names.items() if name not in sys.modules]
    sys.modules.update({stand_in.__name__: stand_in for stand_in in stand_ins})
    with ExitStack() as afterwards:
        for stand_in in stand_ins:
            afterwards.callback(_remove, stand_in)
        afterwards.enter_context(_with_replaced(BaseModel, "model_config", ConfigDict(defer_build=True)))
        yield


@contextmanager
def _with_replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    """Give a class another attribute for a while."""
    own = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def _remove(stand_in: _StandIn) -> None:
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]


@contextmanager
def _without_stubs(module: ModuleType) -> Iterator[None]:
    """Keep Gradio from writing stubs for editors, which takes nearly half of its import.

    At each import it parses the source of every component and of its stub, to see whether to write the stub again where
    Gradio is installed. Nothing reads the stubs while it runs.

    Source: `ComponentMeta.__new__` and `create_or_modify_pyi`, gradio/component_meta.py.
    """
    yield
    if hasattr(module, _STUB_WRITER):
        setattr(module, _STUB_WRITER, lambda *_: None)


@contextmanager
def _without_docs(module: ModuleType) -> Iterator[None]:
    """Keep Gradio from writing the docstring of each event of each component with Jinja: a tenth of the start."""
    # Source: `EventListener.set_doc`, gradio/events.py.
    yield
    listener: Any = getattr(module, "EventListener", None)
    if hasattr(listener, "set_doc"):
        listener.set_doc = lambda *_, **__: None


@contextmanager
def _without_rebuild(_module: ModuleType) -> Iterator[None]:
    """Let models of OpenAPI, which nothing here asks for, be built at their first use."""
    with _with_replaced(BaseModel, "model_rebuild", classmethod(lambda *_, **__: None)):
        yield


class _Finder(importlib.abc.MetaPathFinder):
    """Finds some modules as Python itself does, once each, and executes them within a context."""

    def __init__(self, around: dict[str, _Around]) -> None:
        self._around = around

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        around = self._around.pop(fullname, None)
        if around is None:
            return None
        if not self._around:
            sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            execute = spec.loader.exec_module

            def execute_within(module: ModuleType) -> None:
                with around(module):
                    execute(module)

            spec.loader.exec_module = execute_within  # type: ignore[method-assign]
        return spec
