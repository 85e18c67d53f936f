"""The grid of measured runs: that a failed run is not hidden."""

import pytest

from tests.benchmarks import memory_cpu_grid as grid


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

    output = capsys.readouterr().out
    assert code == (1 if fails else 0)
    assert ("LoRA failed: out of memory" in output) == fails
    assert f"{1 if fails else 2} cells: mean error 10.0%" in output
