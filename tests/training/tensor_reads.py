"""Find reads of tensor values, for which a GPU would have to finish first."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default}


class Reads(TorchDispatchMode):
    """Records reads of tensor values (`item`, `float`, `bool`) while it is on."""

    def __init__(self):
        super().__init__()
        self.is_on = False
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # DDP's map of used parameters is of int32, and in the processor's memory on every device.
        if self.is_on and func in READS and args[0].dtype != torch.int32:
            self.calls.append(func)
        return func(*args, **(kwargs or {}))


class WithinSteps(TrainerCallback):
    """Is on during each step but the first and the last, which are logged."""

    def __init__(self, reads, last):
        self._reads, self._last = reads, last

    def on_step_begin(self, args, state, control, **_):
        self._reads.is_on = 0 < state.global_step < self._last - 1

    def on_epoch_end(self, args, state, control, **_):
        self._reads.is_on = False

    def on_log(self, args, state, control, **_):
        self._reads.is_on = False
