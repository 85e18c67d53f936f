"""What a run on a GPU may have taken next to what was predicted for it."""

WITHIN = 0.06  # of the tensors that were measured


def assert_predicted(need, memory):
    """Tensors within six percent; what PyTorch held, and the process, below their bounds.

    Args:
        need: `engine.memory.device_need.DeviceNeed` of the run.
        memory: `engine.runs.history.events.MemoryData`, the run's last.
    """
    error = need.allocated_bytes / memory.peak_allocated_bytes - 1
    assert abs(error) <= WITHIN, f"tensors: {error:+.1%}"
    # Without the context and the margin of the process, which PyTorch's allocator does not hold.
    assert memory.peak_reserved_bytes <= need.reserved_bound_bytes, "PyTorch held more than its bound"
    assert memory.peak_allocated_bytes <= memory.peak_reserved_bytes
    if memory.peak_device_process_bytes is not None:  # a driver within a container may not tell
        assert memory.peak_reserved_bytes < memory.peak_device_process_bytes <= need.needed_bytes, "the process"
