"""Fixtures that every room shares, and three things that differ in a test run from what people run:

- `os.fsync` does nothing in this process (below): files survive a process that is killed without it.
- Heavy workers are not started, but forked by `tests/fork_server.py` from processes that have imported torch already: wherever
  this process starts one with `subprocess`, its import time is spared, and nothing else. Workers of a started server or command
  are real ones, unless the server itself is started by `tests/browser/forking_app.py`.
- Files run side by side, each as a whole in one process; the longest first.
"""

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

# No test may ask a hub, a tracker or a browser for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Processes next to this one would otherwise slow it down tenfold; see loratory.engine.processes.spawn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Where several files run on as many cores, the threads of a step would wait for each other: an eighth of all trainings' time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import loratory.ui  # noqa: F401 - before gradio
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.supervisor import Supervisor
from tests.fork_server import forking_workers
from tests.supervision.fake_runs import fake_settings

# Images forbid it; each of hundreds of processes would compile our modules, and each worker the assertions of all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# No test cuts the power. It still refuses what is not open.
os.fsync = os.fstat  # type: ignore[assignment]

AT_ONCE = 3  # test files on two cores, which these keep busy
LONGEST = (  # first
    "test_server_check.py",
    "test_ssh_runs.py",
    "test_examples.py",
    "test_results_for_real.py",
    "test_training_survives.py",
    "test_slurm_runs.py",
    "test_result.py",
    "test_page_on_fakes.py",
    "test_main_road.py",
    "test_documents_road.py",
    "test_lab.py",
)
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three files at a time; none next to another where a device is measured or one file is asked for."""
    one_file = len(config.args) == 1 and config.args[0].partition("::")[0].endswith(".py")
    wants_gpu = "gpu" in config.option.markexpr and "not gpu" not in config.option.markexpr
    if one_file or wants_gpu:
        return 0
    return AT_ONCE


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of quick tests first, so what is wrong is soon known; files stay whole.

    Of the slow ones the longest come first: at the end, no worker is left alone with one of them. Of an exhaustive test, only
    the first cases stay in the quick round.
    """
    slow = {item.path for item in items if item.get_closest_marker("e2e") or item.get_closest_marker("browser")}
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (item.path in slow, order.get(item.path.name, len(LONGEST))))
    cases: Counter[str] = Counter()
    for item in items:
        if exhaustive := item.get_closest_marker("exhaustive"):
            test = item.nodeid.partition("[")[0]
            cases[test] += 1
            if cases[test] > exhaustive.kwargs.get("quick", 1):
                item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let Python's garbage collector pass over the millions of objects of what is imported, now and later."""
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            # bitsandbytes would load torch's compiler for functions that are never called; see loratory.engine.processes.spawn.
            patch.setenv("TORCHDYNAMO_DISABLE", "1")
            return (yield)
    finally:
        gc.freeze()
        gc.enable()
        if accelerate_memory := sys.modules.get("accelerate.utils.memory"):
            # Each training of a few steps would begin with a search for garbage, for the sake of a GPU: half of its time.
            vars(accelerate_memory)["gc"] = SimpleNamespace(collect=lambda: 0)


def pytest_unconfigure() -> None:
    """Let the interpreter end without searching all of that again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Restore the environment for the next test: what runs in a worker drops its login."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        if not name.startswith("PYTEST_"):
            del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if not name.startswith("PYTEST_")})


@pytest.fixture(scope="session", autouse=True)
def forked_workers() -> Iterator[None]:
    """Heavy workers are forked from a process that has imported what takes them seconds."""
    with forking_workers():
        yield


@pytest.fixture
def home(tmp_path, monkeypatch) -> LoratoryHome:
    """Return an empty Loratory home of its own for each test."""
    root = tmp_path / "home"
    monkeypatch.setenv("LORATORY_HOME", str(root))
    return LoratoryHome.from_environment()


@pytest.fixture
def store(home: LoratoryHome) -> RunStore:
    """Return the runs of one person."""
    return RunStore(home, "ann")


@pytest.fixture
def start_supervisor(home: LoratoryHome) -> Iterator[Callable[..., Supervisor]]:
    """Return a function that starts supervisors, which end with the test."""
    supervisors: list[Supervisor] = []

    def start(root: LoratoryHome = home, **changes: object) -> Supervisor:
        supervisor = Supervisor(root, fake_settings(**changes))
        supervisor.start()
        supervisors.append(supervisor)
        return supervisor

    yield start
    for supervisor in supervisors:
        supervisor.stop()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    """Return the folder of a Llama of two layers with a tokenizer; read-only."""
    from tests.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def demo_home(tmp_path_factory) -> LoratoryHome:
    """Return a home with the demo model; kept between sessions where LORATORY_TEST_HOME names a folder."""
    from loratory.engine.config.run import ModelConfig
    from loratory.engine.models.source import resolve_model

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared  # tests side by side share one
    root = Path(os.environ.get("LORATORY_TEST_HOME") or shared / "demo-home")
    demo = LoratoryHome(root)
    demo.make_writable()
    resolve_model(ModelConfig(id="smollm2-135m-instruct"), demo)
    return demo


@pytest.fixture(scope="module")
def module_home(demo_home, tmp_path_factory) -> LoratoryHome:
    """Return a home of a test file alone, which has the demo model."""
    home = LoratoryHome(tmp_path_factory.mktemp("home") / "home")
    home.make_writable()
    home.models.mkdir(parents=True, exist_ok=True)
    (home.models / "smollm2-135m-instruct").symlink_to(demo_home.models / "smollm2-135m-instruct")
    return home


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Return reference data that is next to a maintainer's checkout, and in CI."""
    is_ci = os.environ.get("CI", "").casefold() in ("true", "1")
    return reference_data(SHARED, is_required=is_ci and not os.environ.get("LORATORY_WITHOUT_REFERENCE_DATA"))


def reference_data(folder: Path, *, is_required: bool) -> Path:
    """Return the folder; without it a contributor's tests are skipped, and those of CI fail."""
    if folder.is_dir():
        return folder
    if is_required:
        pytest.fail("The shared reference data is not next to this checkout, and CI=true needs it.")
    pytest.skip("the shared reference data is not next to this checkout")
