"""The grid of measured runs: what it measures unless it is asked for more, and that a failed run is not hidden."""

import pytest

from tests.benchmarks import memory_cpu_grid as grid


def test_the_default_cells_cover_every_method_batch_and_length():
    chosen = [grid.cells()[number] for number in grid.default_cells()]

    assert len(chosen) >= 24
    for method in grid.METHODS:
        of_method = [cell for cell in chosen if cell.method == method]
        assert {cell.batch_size for cell in of_method} == set(grid.BATCH_SIZES)
        assert {cell.length for cell in of_method} >= {128, 512, 1024}
        assert {cell.checkpointing for cell in of_method} == ({False} if method == "Prefix tuning" else {False, True})


@pytest.mark.parametrize("fails", [True, False])
def test_a_cell_that_fails_is_named_and_fails_the_command(fails, monkeypatch, capsys, home):
    def measure(cell, *_):
        if fails and cell.length == 512:
            raise RuntimeError("out of memory")
        return grid.Result(cell, 1, 110, 140, 100, 1.0)

    monkeypatch.setattr(grid, "measure", measure)
    monkeypatch.setattr(grid, "module_inventory", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["memory_cpu_grid", "--cells", "0,2"])

    code = grid.main()

    printed = capsys.readouterr().out
    assert code == (1 if fails else 0)
    assert ("LoRA failed: out of memory" in printed) == fails
    assert f"{1 if fails else 2} cells: mean error 10.0%" in printed
