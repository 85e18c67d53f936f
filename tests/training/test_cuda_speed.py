"""The CUDA benchmark works without a GPU as far as it can: its own code, its table, its count of launches."""

from loratory.engine.config.optimizations import TRAINING_OPTIMIZATIONS, VARIABLE
from tests.benchmarks.cuda_speed import GIB, TINY, Cell, Figures, cells, measure, table
from tests.benchmarks.lora_launches import count_launches
from tests.tiny_model import make_tiny_model


def test_a_cell_is_measured_by_the_trainer_of_the_worker(tmp_path):
    figures = measure(Cell(TINY, "none", "ours"), make_tiny_model(tmp_path / TINY))

    assert figures.tokens_per_second > 0


def test_the_table_has_what_was_measured_and_names_the_rest():
    ours, other = Cell("8B", "nf4", "ours"), Cell("8B", "nf4", "ours", "fused_lora")
    result = table(
        {ours: Figures(2000.0, 5 * GIB, 6 * GIB, 4), other: Figures(1000.0, GIB), Cell("8B", "nf4", "trl"): "no time"}
    )

    assert "| 8B | nf4 | ours | 2,000 | 100% | 4 | 5.00 | 6.00 |" in result
    assert "| 8B | nf4 | ours without fused_lora | 1,000 | 50% | 1 | 1.00 |  |" in result
    assert result.endswith("Not measured:\n- 8B, nf4, trl: no time")


def test_the_most_telling_cells_come_first():
    order = list(cells(["0.5B", "8B"]))

    assert [cell.label for cell in order[:4]] == ["ours"] * 4
    assert {cell.without for cell in order} == {"", *TRAINING_OPTIMIZATIONS}
    assert len(set(order)) == len(order)


def test_fused_layers_launch_less(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")  # which counting sets, and is put back
    forward, backward = count_launches(1, "fused_lora")
    fused_forward, fused_backward = count_launches(1, "")

    assert fused_forward <= forward - 27  # four in each of seven layers, and one copy for all
    # In a first layer, whose input needs no gradient; PyTorch 2.15 launches twelve fewer of the others than 2.13.
    assert fused_backward <= backward - 18
