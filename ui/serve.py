"""Build the real services, launch the page on them, and leave cleanly; runs go on without us."""

import gc
import signal
import threading

from engine.chat.session import ChatSession
from engine.inspector.session import Inspector
from engine.paths import LoratoryHome, data_folders, local_owner
from engine.runs.launch import Launcher, Preflight
from engine.runs.memory_measurement import MeasurementJob, MeasuringGround
from engine.runs.store import RunStore
from engine.runs.supervision.supervisor import Supervisor
from ui.backend.dataset_checks import DatasetChecks
from ui.backend.results import ResultWork
from ui.backend.tokenizers import Tokenizers
from ui.backend.transfers import Transfers
from ui.launch import launch
from ui.services import KnownShapes, Services


def serve(home: LoratoryHome, host: str, port: int, *, open_browser: bool = False) -> None:
    """Serve the page until Ctrl+C or SIGTERM.

    Raises:
        EngineError: If a service cannot start.
    """
    MeasuringGround(home).sweep()
    inspector = Inspector(home, data_roots=(home.uploads, *data_folders()))
    runs = RunStore(home, local_owner())
    supervisor = Supervisor(home)
    chat = ChatSession(home)
    services = Services(
        home=home,
        transfers=Transfers(home),
        inspector=inspector,
        shapes=KnownShapes(inspector),
        runs=runs,
        launcher=Launcher(runs, Preflight(home, inspector)),
        chat=chat,
        checks=DatasetChecks(inspector),
        tokenizers=Tokenizers.on_this_machine(home),
        results=ResultWork.on_this_machine(home),
        measure=lambda config, estimate: MeasurementJob(home, config, estimate),
        standing_by=supervisor.explain_standing_by,
    )
    leaving = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leaving.set())
    if supervisor.start() == "standing_by":
        print(supervisor.explain_role(), flush=True)
    try:
        app = launch(services, host, port, open_browser=open_browser)
        gc.freeze()  # what the imports made stays for good; no collection needs to look at it again
        gc.enable()
        inspector.start()
        print(f"Loratory is at http://{host}:{port} (Ctrl+C closes the page; runs go on).", flush=True)
        leaving.wait()
        app.close(verbose=False)
    finally:
        supervisor.stop()
        chat.unload()
        services.results.stop_all()
        services.measurements.stop_all()
        services.tokenizers.stop_all()
        inspector.close()
