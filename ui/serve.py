"""Build the real services, launch the page on them, and shut down cleanly; runs continue."""

import asyncio
import gc
import signal
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from loratory.engine.accounts.people import Action, Logins, Person, may
from loratory.engine.chat.session import ChatSession
from loratory.engine.evaluation.job import EvaluationJob
from loratory.engine.evaluation.try_reward import TryRewardJob
from loratory.engine.export.job import ExportJob
from loratory.engine.export.push import PushJob
from loratory.engine.inspector.session import Inspector, InspectorSlots
from loratory.engine.paths import LoratoryHome, data_folders, local_owner
from loratory.engine.places.huggingface_jobs.account import HardwareList, logins_of
from loratory.engine.runs.store import RunStore
from loratory.engine.serve.guard import OwnPageOnly
from loratory.engine.supervision.launch import Launcher, Preflight
from loratory.engine.supervision.memory_measurement import MeasurementJob, sweep_measurements
from loratory.engine.supervision.supervisor import Supervisor
from loratory.ui.backend.dataset_checks import DatasetChecks
from loratory.ui.backend.models import KnownShapes, OwnDownloads, Shapes, Tokenizers
from loratory.ui.backend.results import ResultWork
from loratory.ui.backend.transfers import Transfers
from loratory.ui.build import SERVING, build_app
from loratory.ui.gradio_internals import keep_little
from loratory.ui.policy import PagePolicy
from loratory.ui.polls import PollAnswers
from loratory.ui.services import Services
from loratory.ui.theme import build_theme

_SWEEP_SECONDS = 600


def serve(home: LoratoryHome, host: str, port: int, *, open_browser: bool = False) -> None:
    """Serve the page until Ctrl+C or SIGTERM.

    Raises:
        EngineError: If a service cannot start.
    """
    sweep_measurements(home)
    supervisor = Supervisor(home)
    services = build_services(home, local_owner(), (home.uploads, *data_folders()), supervisor)
    leaving, (bell, alarm) = threading.Event(), socket.socketpair()
    alarm.setblocking(False)
    signal.set_wakeup_fd(alarm.fileno())  # rings for a signal that the system gives to another thread too
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leaving.set())
    if supervisor.start() == "standing_by":
        print(supervisor.explain_standing_by(), flush=True)
    try:
        app = launch(services, host, port, open_browser=open_browser)
        gc.freeze()  # the objects of the imports stay; no collection needs to look at them again
        gc.enable()
        services.inspector.start()
        print(f"Loratory is at http://{host}:{port} (Ctrl+C closes the page; runs continue).", flush=True)
        while not leaving.is_set():
            bell.recv(1)
        app.close(verbose=False)
    finally:
        signal.set_wakeup_fd(-1)
        supervisor.stop()
        close_services(services)


def build_services(
    home: LoratoryHome,
    owner: str,
    data_roots: tuple[Path, ...],
    supervisor: Supervisor,
    person: Person | None = None,
    of_catalog: Shapes | None = None,
    slots: InspectorSlots | None = None,
    logins: Logins | None = None,
) -> Services:
    """Return what the page of one person may call.

    Args:
        data_roots: Folders whose files may be opened as datasets.
        person: Who is signed in; None where there are no accounts.
        of_catalog: Shapes of models that pages share.
        slots: For the inspectors' processes of all pages of a lab.
    """
    inspector = Inspector(home, data_roots, slots)
    runs, login_of = RunStore(home, owner), logins_of(home, logins)
    hardware = HardwareList(lambda: login_of(owner))
    return Services(
        home=home,
        transfers=Transfers(home),
        inspector=inspector,
        shapes=KnownShapes(inspector, of_catalog),
        runs=runs,
        launcher=Launcher(runs, Preflight(home, inspector, flavors=hardware.refresh)),
        chat=ChatSession(home),
        checks=DatasetChecks(inspector),
        tokenizers=Tokenizers.on_this_machine(home),
        results=ResultWork(home, partial(EvaluationJob, home), partial(ExportJob, home), partial(PushJob, home)),
        measure=partial(MeasurementJob, home),
        try_reward=partial(TryRewardJob, home),
        hardware=hardware,
        person=person,
        logins=logins if person is not None and may(person, Action.USE_JOBS) else None,
        own_models=OwnDownloads(runs, "model") if home.owner and not home.is_guest else None,
        own_datasets=OwnDownloads(runs, "dataset") if home.owner and not home.is_guest else None,
        standing_by=supervisor.explain_standing_by,
    )


def close_services(services: Services) -> None:
    """End what a page started for itself; runs continue."""
    services.chat.unload()
    results, own = services.results, (services.own_models, services.own_datasets)
    others = [services.documents, *(of_kind.downloading for of_kind in own if of_kind is not None)]
    for works in (
        results.measuring,
        results.exporting,
        services.measurements,
        services.tries,
        services.tokenizers.works,
        *others,
    ):
        works.stop_all()
    services.inspector.close()


def launch(services: Services, host: str, port: int | None, *, open_browser: bool = False) -> gr.Blocks:
    """Lay out the page and serve it from threads of this process; `local_url` has its address, `close` ends it.

    The host is a loopback address; without a port, any free one is taken.

    Raises:
        StorageError: If the folder for uploads and downloads cannot be used.
    """
    transfers = services.transfers
    transfers.prepare()
    app = build_app(services)

    @asynccontextmanager
    async def housekeeping(server: gr.routes.App) -> AsyncIterator[None]:
        keep_little(server)
        # Around Gradio's own middleware, so its CORS answers and errors pass the guard too.
        server.middleware_stack = OwnPageOnly(server.middleware_stack)
        sweeping = asyncio.create_task(_sweep_regularly(transfers))
        try:
            yield
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping

    app.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        theme=build_theme(),
        app_kwargs={
            "lifespan": housekeeping,
            "middleware": [Middleware(PagePolicy, transfers=transfers), Middleware(PollAnswers, blocks=app)],
        },
        **SERVING,
    )
    return app


async def _sweep_regularly(transfers: Transfers) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        await asyncio.to_thread(transfers.sweep)
