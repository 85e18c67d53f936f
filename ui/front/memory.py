"""Free memory that a user's page never uses; pages of two users share no values."""

import asyncio.sslproto
import ctypes
import gc
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import fastapi.dependencies.models
import gradio as gr
import orjson
from fastapi import APIRouter
from gradio.routes import App, ORJSONResponse

_PLAIN = (type(None), bool, int, float, str)
_LISTS = frozenset(  # of events and components, which nothing changes once a page is laid out
    "inputs outputs input_parameter_names component_prop_inputs input_keyword_names cancels show_progress_on elem_classes "
    "server_fns buttons preserved_by_key".split()
)
_TLS_BUFFER_BYTES = 32 * 1024  # two records, which have 16 KiB at most


class _Packed(Mapping[str, Any]):
    """The description of a page that browsers get, compressed: it is read only when the page is opened."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._packed = zlib.compress(ORJSONResponse._render(description))

    def _unpack(self) -> dict[str, Any]:
        return dict(orjson.loads(zlib.decompress(self._packed)))

    def __getitem__(self, key: str) -> Any:
        return self._unpack()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._unpack())

    def __len__(self) -> int:
        return len(self._unpack())

    def __deepcopy__(self, _: Any) -> dict[str, Any]:
        return self._unpack()

    def items(self) -> Any:
        """Return all parts, unpacked once."""
        return self._unpack().items()


def trim_memory(blocks: gr.Blocks, app: App, is_offered: Callable[[str], bool]) -> None:
    """Let the mounted blocks of a person hold a fifth of what Gradio 6.31 leaves in them; one call at a time.

    It keeps the description for browsers as Python objects (1.4 MiB), for each of our 400 events a list of its own of the
    form's 90 components and of their names, although they are the same (0.5 MiB), 4,000 empty lists (0.2 MiB), in each of 700
    components and of the events 40 attributes, of which most are equal in all (0.8 MiB), two empty sets for each component,
    texts that all pages have (0.4 MiB), and 50 routes that the gate does not offer, each prepared twice (0.8 MiB).

    Args:
        app: That they are mounted as, before its first request.
        is_offered: Returns whether the gate lets requests for a path through.
    """
    blocks.config = _Packed(blocks.config)
    same: dict[tuple[Any, ...], list[Any]] = {}
    _share_files(blocks)
    _share_texts(blocks)
    parts = [*blocks.fns.values(), *blocks.blocks.values()]
    for part in parts:
        for name in _LISTS.intersection(vars(part)):
            if isinstance(values := getattr(part, name), list):
                setattr(part, name, same.setdefault((name, *map(id, values)), values))
    _leave_to_classes(parts)
    _remove_routes(app.router, is_offered)


def _share_files(blocks: gr.Blocks) -> None:
    """Let the components of a page note their files in two sets, which are read together, instead of in two each."""
    files: set[str] = set()
    paths: set[str] = set()
    for block in blocks.blocks.values():
        files |= block.temp_files
        paths |= block.keep_in_cache
        block.temp_files, block.keep_in_cache, block.GRADIO_CACHE = files, paths, blocks.GRADIO_CACHE
        block.share_token = ""  # of a whole page that is shared by Gradio's tunnel
    blocks.temp_file_sets = [blocks.upload_file_set, files]


def _share_texts(blocks: gr.Blocks) -> None:
    """Let pages have their equal texts in common: scripts, styles and the catalogue, each twice where it is not ASCII."""
    arguments = (values for block in blocks.blocks.values() for values in getattr(block, "_constructor_args", ()))
    for values in (vars(blocks), *map(vars, blocks.blocks.values()), *arguments):
        values.update({name: sys.intern(value) for name, value in values.items() if type(value) is str})


def _leave_to_classes(objects: Iterable[Any]) -> None:
    """Take the attributes that most objects of a class have in common out of each of them: half of their memory.

    With more than 30 attributes, an object of Python 3.11 has a table of names of its own. An object keeps a value that is
    another than its class has, such as that of an earlier page. A class gets only what all of its objects have, for Gradio
    checks whether an object has an attribute.
    """
    by_class: dict[type, list[Any]] = {}
    for instance in objects:
        by_class.setdefault(type(instance), []).append(instance)
    for kind, instances in by_class.items():
        common = set.intersection(*(set(vars(instance)) for instance in instances))
        counts = Counter(item for instance in instances for item in _plain(vars(instance)))
        for (name, _, value), count in counts.items():
            if name in common and count > len(instances) / 2 and not hasattr(kind, name):
                setattr(kind, name, value)
        of_class = set(_plain({name: getattr(kind, name) for name in common if hasattr(kind, name)}))
        for instance in instances:
            names = {name for name, *_ in of_class.intersection(_plain(vars(instance)))}
            own = {name: value for name, value in vars(instance).items() if name not in names}
            object.__setattr__(instance, "__dict__", own)


def _plain(values: Mapping[str, Any]) -> Iterator[tuple[str, type, Any]]:
    """Yield what can be compared, without private attributes: those note whether something was done already."""
    for name, value in values.items():
        if isinstance(value, _PLAIN) and not name.startswith("_"):
            yield name, type(value), value


def _remove_routes(router: APIRouter, is_offered: Callable[[str], bool]) -> None:
    """Remove the routes that cannot be reached, before FastAPI prepares each a second time at the first request."""
    routes = []
    for route in router.routes:
        inner_router = getattr(route, "original_router", None)
        if inner_router is not None:
            _remove_routes(inner_router, is_offered)
        path = re.sub(r"\{[^}]*\}", "predict", getattr(route, "path", ""))  # by this name the page calls all its events
        if inner_router is not None or is_offered(path):
            routes.append(route)
    router.routes[:] = routes


def close_queue(blocks: gr.Blocks) -> None:
    """Stop the queue of blocks whose server has ended; with Gradio 6.31, mounted blocks keep theirs forever."""
    blocks._queue.close()


def freeze_objects() -> None:
    """Exclude the objects of a new page from later garbage collections.

    It is 100,000 objects: otherwise each full collection visits those of all people, and all requests wait for it.
    """
    gc.collect()
    gc.freeze()
    return_memory()


def reclaim() -> None:
    """Collect the garbage of closed pages; takes half a second with many open pages."""
    for cache in vars(fastapi.dependencies.models).values():  # they hold the routes of every app that there ever was
        if hasattr(cache, "cache_clear"):
            cache.cache_clear()
    gc.unfreeze()
    freeze_objects()


def return_memory() -> None:
    """Return free memory to the system: building and opening a page needs three times what remains."""
    if _trim is not None:
        _trim(0)


def prepare_memory() -> None:
    """Configure memory use of a lab's server, before it starts threads and accepts connections.

    All threads allocate from two pools: in one of their own each holds what another could use. A connection over TLS has a
    buffer of 32 KiB, where that of asyncio has 256 KiB; each open page has two to six.
    """
    asyncio.sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES
    if _tune is not None:
        _tune(_M_ARENA_MAX, 2)


_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # where it is glibc, it has both
_trim, _tune = (getattr(_libc, name, None) for name in ("malloc_trim", "mallopt"))
