"""Follow every tensor of a real step: how many bytes are alive after each operation."""

import weakref
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, from their birth to their death.

    Scratch within one operation's kernel is invisible to it, and while it watches, autograd never adds a gradient in
    place (torch/csrc/autograd/input_buffer.cpp): what is compared with it must be told so.
    """

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peaks: dict[str, int] = {}
        self._phase: str | None = None
        self._known: dict[int, object] = {}

    @contextmanager
    def phase(self, name):
        """Measure the peak of a part of the step."""
        self._phase = name
        self.peaks[name] = self.live
        yield
        self._phase = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._meet(leaf.untyped_storage(), inputs)
        return result

    def _meet(self, storage, inputs):
        key, size = storage._cdata, storage.nbytes()
        # Views and results in place bring nothing new, not even where this mode sees their storage for the first time.
        if key in self._known or key in inputs or not size:
            return
        self.live += size
        self._known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._forget(key, size))
        if self._phase is not None:
            self.peaks[self._phase] = max(self.peaks[self._phase], self.live)

    def _forget(self, key, size):
        if self._known.pop(key, None) is not None:
            self.live -= size
