"""The memory rule of each PEFT method. The rule of a new method is added here."""

from collections.abc import Iterator, Sequence

from engine.memory.autograd.tensors import Value
from engine.memory.layers.modules import base_projection
from engine.memory.layers.step_context import StepContext, in_scope
from engine.memory.methods.base import MemoryRule
from engine.memory.methods.lora import AdaLoraMemory, LoraMemory
from engine.memory.methods.structured import Ia3Memory, LoHaMemory, LoKrMemory, MissMemory, OftMemory, VeraMemory
from engine.memory.methods.virtual_tokens import PrefixTuningMemory, PromptTuningMemory, PTuningMemory
from engine.models.shape import ModuleShape

MEMORY_RULES: dict[str, MemoryRule] = {
    "lora": LoraMemory(),
    "adalora": AdaLoraMemory(),
    "loha": LoHaMemory(),
    "lokr": LoKrMemory(),
    "oft": OftMemory(),
    "vera": VeraMemory(),
    "miss": MissMemory(),
    "ia3": Ia3Memory(),
    "prefix_tuning": PrefixTuningMemory(),
    "prompt_tuning": PromptTuningMemory(),
    "p_tuning": PTuningMemory(),
    "none": MemoryRule(),
}


@in_scope
def project(r: StepContext, x: Value, module: ModuleShape) -> Value:
    """Send x through one linear layer, adapter included."""
    if module.name not in r.targets.names:
        return base_projection(r, x, module)
    return MEMORY_RULES[r.workload.adapter.method].project(r, x, module)


def project_each(r: StepContext, x: Value, modules: Sequence[ModuleShape]) -> Iterator[Value]:
    """Send x through linear layers that share it, one after the other; the first computes those that are one function."""
    together = [module for module in modules if module.name in r.targets.names]
    cache: dict[str, Value] = {}
    for module in modules:
        if len(together) > 1 and module is together[0]:
            outer = r.tape.enter_scope()
            values = MEMORY_RULES[r.workload.adapter.method].project_together(r, x, together) or ()
            r.tape.leave_scope(outer, values)
            cache = {one.name: value for one, value in zip(together, values, strict=False)}
        yield cache[module.name] if module.name in cache else project(r, x, module)
