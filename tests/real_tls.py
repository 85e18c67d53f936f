"""Certificates and servers on this machine, for tests that need real TLS or a real socket."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import safehttpx
import trustme
from starlette.types import ASGIApp

from loratory.ui.front.connections import bounded_server

_PATIENCE_SECONDS = 300


class Certificate(NamedTuple):
    """Files of a certificate, and what trusts it."""

    chain: Path
    key: Path
    trust: ssl.SSLContext


def certificate_for(host: str, folder: Path, name: str = "tls") -> Certificate:
    """Write a certificate, by an authority of its own, into a folder."""
    authority = trustme.CA()
    certificate = authority.issue_cert(host)
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    certificate.private_key_pem.write_to_path(key)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return Certificate(chain, key, trust)


@contextmanager
def serve_over_tls(
    app: ASGIApp, bound: socket.socket, certificate: Certificate | None, grace_seconds: int = 1
) -> Iterator[None]:
    """Serve an app from a thread until the context ends; without a certificate, without TLS."""
    chain, key = (certificate.chain, certificate.key) if certificate is not None else (None, None)
    server, bound = bounded_server(app, bound, chain, key, grace_seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()


class Site(NamedTuple):
    """A site of another party, which counts as public."""

    url: str
    visits: list[str]  # paths that were asked for


@contextmanager
def public_site() -> Iterator[Site]:
    """Serve a site from a thread, at an address that Gradio's guard of private networks lets pass."""
    visits: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            visits.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"of a stranger")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(safehttpx, "is_public_ip", lambda _: True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Site(f"http://127.0.0.1:{server.server_port}", visits)
        finally:
            server.shutdown()
            thread.join()
