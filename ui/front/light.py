"""What the page of a person holds in memory and never uses: let go. Nothing is shared by the pages of two people."""

import ctypes
import gc
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import fastapi.dependencies.models
import gradio as gr
import orjson
from gradio.routes import ORJSONResponse


class _Packed(Mapping[str, Any]):
    """The description of a page that browsers get, compressed: it is read only when somebody opens the page."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._packed = zlib.compress(ORJSONResponse._render(description))

    def _unpacked(self) -> dict[str, Any]:
        return dict(orjson.loads(zlib.decompress(self._packed)))

    def __getitem__(self, key: str) -> Any:
        return self._unpacked()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._unpacked())

    def __len__(self) -> int:
        return len(self._unpacked())

    def __deepcopy__(self, _: Any) -> dict[str, Any]:
        return self._unpacked()

    def items(self) -> Any:
        """Return all parts, unpacked once."""
        return self._unpacked().items()


def lighten(blocks: gr.Blocks) -> None:
    """Let mounted blocks hold a third of what Gradio 6.31 leaves in them.

    It keeps the description for browsers as Python objects (1.4 MiB), and for each of our 400 events a list of its own of
    the form's 90 components and of their names, although they are the same (0.5 MiB).
    """
    blocks.config = _Packed(blocks.config)
    same: dict[tuple[Any, ...], list[Any]] = {}
    for event in blocks.fns.values():
        for name in ("inputs", "outputs", "input_parameter_names"):
            values = getattr(event, name)
            setattr(event, name, same.setdefault((name, *map(id, values)), values))


def end(blocks: gr.Blocks) -> None:
    """Stop the queue of blocks whose server has ended: with Gradio 6.31, that of mounted blocks looks for work for ever."""
    blocks._queue.close()


def settle() -> None:
    """Leave what a page that was just made consists of out of later collections of garbage.

    It is 100,000 objects: otherwise each full collection looks at those of all people, and everybody waits for it.
    """
    gc.collect()
    gc.freeze()
    return_memory()


def reclaim() -> None:
    """Find all that pages which were closed have left; takes half a second where many are open."""
    for cached in vars(fastapi.dependencies.models).values():  # they hold the routes of every app that there ever was
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
    gc.unfreeze()
    settle()


def return_memory() -> None:
    """Give memory that is free back to the system: making and opening a page takes three times what stays."""
    if _trim is not None:
        _trim(0)


def share_free_memory() -> None:
    """Let all threads allocate from two pools, before they start: in one of their own each holds what others could use."""
    if _tune is not None:
        _tune(_M_ARENA_MAX, 2)


_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # where it is glibc, it has both
_trim, _tune = (getattr(_libc, name, None) for name in ("malloc_trim", "mallopt"))
