"""Launch the page: who may ask, what is kept of pages and files, and for how long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import gradio as gr
from starlette.middleware import Middleware

from engine.serve.guard import OwnPageOnly
from ui.backend.transfers import LARGEST_FILE_BYTES, Transfers
from ui.build import build_app
from ui.gradio_internals import keep_little
from ui.policy import PagePolicy
from ui.services import Services
from ui.theme import STYLESHEETS, build_theme

_SWEEP_SECONDS = 600


def launch(services: Services, host: str, port: int | None, *, open_browser: bool = False) -> gr.Blocks:
    """Lay out the page and serve it from threads of this process; `local_url` says where, `close` ends it.

    Args:
        services: What the page stands on.
        host: A loopback address.
        port: None takes any that is free.
        open_browser: Also open it in the default browser.

    Raises:
        StorageError: If the folder for uploads and downloads cannot be used.
    """
    transfers = services.transfers
    transfers.prepare()
    app = build_app(services)

    @asynccontextmanager
    async def housekeeping(server: gr.routes.App) -> AsyncIterator[None]:
        keep_little(server)
        # Around Gradio's own middleware, whose answers to other sites and whose errors need the guard as well.
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
        css_paths=STYLESHEETS,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        max_file_size=LARGEST_FILE_BYTES,
        app_kwargs={"lifespan": housekeeping, "middleware": [Middleware(PagePolicy, transfers=transfers)]},
    )
    return app


async def _sweep_regularly(transfers: Transfers) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        await asyncio.to_thread(transfers.sweep)
