"""Serving until interrupted: the address, the model, and an end that frees the device."""

import signal
from collections.abc import Callable
from typing import NamedTuple

import uvicorn

from engine.serve.address import LOOPBACK_HOSTS, bound_socket, refuse_unless_usable
from engine.serve.endpoint import build_endpoint
from engine.serve.model import ServedModel

_GRACE_SECONDS = 3


class Listening(NamedTuple):
    """Where clients find it."""

    url: str  # what they call `base_url`
    models: tuple[str, ...]


def serve_model(
    served: ServedModel,
    host: str,
    port: int,
    on_listening: Callable[[Listening], None],
    load: Callable[[], object] | None = None,
) -> None:
    """Load the model, then answer until Ctrl-C or SIGTERM; the model's process has ended when this returns.

    Args:
        served: What answers.
        host: A loopback address.
        port: 0 takes any that is free.
        on_listening: Told the address, once clients may come.
        load: Loads the model; `served.load` unless progress is to be shown.

    Raises:
        DeviceError: If the address cannot be used, or the device is in use.
        EngineError: If the model cannot be loaded.
    """
    if port != 0 or host not in LOOPBACK_HOSTS:
        refuse_unless_usable(host, port)
    bound = bound_socket(host, port)
    # uvicorn ends in order and then raises the signal again; that one must not kill us before the model has gone.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        (load or served.load)()
        config = uvicorn.Config(
            build_endpoint(served),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        bound.listen()  # who comes from now on is kept waiting for a moment and not refused
        shown = f"[{host}]" if ":" in host else host
        on_listening(Listening(f"http://{shown}:{bound.getsockname()[1]}/v1", tuple(served.offered)))
        uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:
        return
    finally:
        bound.close()
        served.session.unload()
        signal.signal(signal.SIGTERM, before)
