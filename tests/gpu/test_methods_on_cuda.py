"""Every method on every precision, by a real worker on the demo model: trains, saves, is killed and resumes."""

import pytest
from safetensors.torch import load_file

from tests.gpu.cuda_training import CELLS, sections_of
from tests.training.worker_runs import data_of_events

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]


@pytest.mark.parametrize(("method", "quantization"), CELLS, ids=[f"{m}-{q}" for m, q in CELLS])
def test_a_killed_run_continues_as_if_nothing_had_happened(method, quantization, resumed_run, cuda_workers, show):
    _, run, worst = resumed_run(**sections_of(method, quantization))

    show(worst_loss_difference=round(worst, 6))
    assert "cpu" not in data_of_events(run, "parameters")[0].device.lower()
    assert "inputs will be cast" not in cuda_workers.log.read_text(errors="replace")  # int8, in each layer of each pass
    weights = [load_file(path) for path in run.folder.adapter.glob("*.safetensors")]
    assert sum(tensor.numel() for file in weights for tensor in file.values()) > 0
