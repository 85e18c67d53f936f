import os
import sys
from typing import Any

import pytest

from loratory.engine.errors import WorkerError
from loratory.engine.processes.spawn import spawn, worker_argv


def run(tmp_path, code: str, **values: Any) -> str:
    log = tmp_path / "deep" / "worker.log"
    assert spawn([sys.executable, "-c", code], log_file=log, **values).wait() == 0
    return log.read_text()


def test_output_of_both_kinds_goes_to_the_end_of_the_log(tmp_path):
    run(tmp_path, "print('first')")
    text = run(tmp_path, "import sys; print('out'); print('err', file=sys.stderr)")
    assert text.splitlines()[0] == "first"
    assert set(text.splitlines()) == {"first", "out", "err"}


def test_the_process_has_a_session_of_its_own_and_nothing_on_stdin(tmp_path):
    text = run(tmp_path, "import os, sys; print(os.getsid(0) == os.getpid(), repr(sys.stdin.read()))")
    assert text == "True ''\n"


def test_variables_are_added_and_no_open_file_is_inherited(tmp_path, monkeypatch):
    monkeypatch.setenv("LORATORY_INHERITED", "yes")
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        code = (
            "import os\n"
            "print(os.environ['LORATORY_INHERITED'], os.environ['ADDED'])\n"
            f"try:\n    os.fstat({file.fileno()}); print('open')\nexcept OSError:\n    print('closed')"
        )
        assert run(tmp_path, code, environment={"ADDED": "1"}) == "yes 1\nclosed\n"


def test_caches_of_compiled_products_are_bounded_unless_the_person_set_them(tmp_path, monkeypatch):
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    code = f"import os; print(*(os.environ.get(name) for name in {names}))"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    first, second = run(tmp_path, code).split()
    assert int(first) == int(second) < 1024

    for name in names:
        monkeypatch.setenv(name, "777")
    assert run(tmp_path, code).splitlines()[-1] == "777 777"


def test_what_cannot_be_started_is_one_clear_error(tmp_path):
    with pytest.raises(WorkerError, match="could not be started"):
        spawn(["/nonexistent/program"], log_file=tmp_path / "log")


def test_our_modules_run_in_this_python_and_not_from_the_current_folder():
    assert worker_argv("loratory.engine.x", ("a",)) == [sys.executable, "-P", "-m", "loratory.engine.x", "a"]
