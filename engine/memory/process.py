"""What a training process holds in RAM on a CPU: itself, mapped weights, tensors, and holes between them."""

from engine.memory.tensors_at_peak import TensorsAtPeak
from engine.memory.workload import Workload
from engine.processes.spawn import PRODUCT_CACHE_CAPACITY

MIB = 2**20

# Python with PyTorch, transformers and PEFT imported, a tokenizer, and rows of a few thousand tokens: measured as the
# peak of runs, less what the other lines here account for.
_PROCESS_ITSELF = 590 * MIB
# Tensors come from the C library, which cuts their holes up for small objects that stay, so that a hole does not serve
# the next tensor of its size. What is lost grows with what passes through a layer, more than with what is kept. Where
# casts and integer products bring tensors of many sizes, nearly twice as much is lost.
_HOLES_OF_KEPT = 0.075
_HOLES_OF_LAYER = 1.8
_HOLES_OF_MANY_SIZES = 1.75
# oneDNN compiles a product for each size of a pass, forward and backward, and both its cache and PyTorch's keep it: code,
# tables and buffers of 0.58 MiB each (the heap of runs of ever new lengths, at capacities of 64, 256 and 1,024). The first
# size is part of the process itself.
_COMPILED_PRODUCT = round(0.58 * MIB)
_PRODUCTS_OF_A_SIZE = 40
# Rows of many lengths leave more holes than rows of one: runs on real rows that come near max_length were measured up to a
# quarter above what is expected.
_MARGIN = 0.27


def process_on_cpu(tensors: TensorsAtPeak, workload: Workload) -> tuple[int, int]:
    """Expected bytes of the process, as the system counts its resident set, and a bound that nine in ten stay below.

    The constants are those of glibc, and were measured by `python -m tests.benchmarks.memory_cpu_grid`.
    """
    holes = _HOLES_OF_KEPT * tensors.passing_bytes + _HOLES_OF_LAYER * tensors.layer_bytes
    if workload.precision.autocast is not None or workload.base == "int8":
        holes *= _HOLES_OF_MANY_SIZES
    expected = _PROCESS_ITSELF + tensors.mapped_bytes + tensors.allocated_bytes + round(holes)
    expected += compiled_products_bytes(workload.pass_sizes)
    return expected, round(expected * (1 + _MARGIN))


def compiled_products_bytes(pass_sizes: int) -> int:
    """Return what compiled products of further sizes than the first hold, within the capacity that our workers set."""
    products = min(PRODUCT_CACHE_CAPACITY, _PRODUCTS_OF_A_SIZE * pass_sizes)
    return _COMPILED_PRODUCT * max(0, products - _PRODUCTS_OF_A_SIZE)
