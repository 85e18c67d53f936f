"""Start Loratory: parse flags, build the services, launch the page."""

import argparse
import gc
import os
import sys

from loratory.engine.errors import EngineError, HubUnreachableError
from loratory.engine.paths import HANDED_OVER, IN_A_SPACE, LoratoryHome
from loratory.engine.serve.guard import refuse_unless_usable


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until interrupted; returns the exit code."""
    options = _parse(arguments)
    if HANDED_OVER in os.environ or IN_A_SPACE in os.environ:
        return _serve_space(options)
    try:
        if options.lab:
            return _serve_lab(options)
        refuse_unless_usable(options.host, options.port)
        home = LoratoryHome.from_environment()
        _prepare_imports()
        from loratory.ui.serve import serve

        serve(home, options.host, options.port, open_browser=options.open)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _serve_lab(options: argparse.Namespace) -> int:
    from loratory.engine.accounts.lab import PublicAddress, forget_secrets
    from loratory.engine.accounts.listener import Listener, TrustedProxy
    from loratory.engine.accounts.oidc_settings import read_oidc_settings
    from loratory.engine.errors import AccountError
    from loratory.engine.paths import LAB, typed_path

    address = PublicAddress.parse(options.public_url or "")
    listener = Listener.chosen(options.socket, options.host, options.port, options.tls_cert, options.tls_key)
    proxy = TrustedProxy.chosen(options.identity_header, options.proxy_user, listener)
    settings = read_oidc_settings(typed_path(options.oidc)) if options.oidc is not None else None
    if settings is not None and proxy is not None:
        raise AccountError("People are named by a provider or by a proxy.", "Give --oidc or --identity-header.")
    home = LoratoryHome.from_environment()
    has_begun_again = LAB in os.environ
    if forget_secrets() and not has_begun_again:
        _restart()
    _prepare_imports()
    from loratory.ui.front.serve import serve_lab

    provider = None
    if settings is not None:
        from loratory.engine.accounts.oidc import Provider

        provider = Provider(settings, address.origin)
    serve_lab(home, address, listener, provider, proxy)
    return 0


def _serve_space(options: argparse.Namespace) -> int:
    """Serve the lab of a Hugging Face Space, or what keeps it from starting."""
    from loratory.engine.accounts.lab import forget_secrets
    from loratory.engine.accounts.listener import Listener
    from loratory.engine.space.environment import ADMITTED, BUCKET, SpaceEnvironment

    listener = Listener.in_a_space(options.port)
    try:
        handed_over = os.environ.pop(HANDED_OVER, None)
        if handed_over is None:
            os.environ[HANDED_OVER] = str(SpaceEnvironment.read(os.environ).hand_over())
            for name in (ADMITTED, BUCKET):
                os.environ.pop(name, None)  # runs do not need it
            forget_secrets()
            _restart()
        environment = SpaceEnvironment.take_over(handed_over or "")
        if environment.zero_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # runs use the CPU: ZeroGPU lends a GPU for answers only
        forget_secrets()
        home = LoratoryHome.from_environment()
        _prepare_imports()
        from loratory.ui.front.serve import serve_lab
        from loratory.ui.front.space import open_space

        with open_space(environment, home) as space:
            serve_lab(home, environment.address, listener, space=space)
    except EngineError as error:
        print(error, file=sys.stderr, flush=True)
        forget_secrets()
        from loratory.ui.front.connections import serve_problem

        serve_problem(error, listener)
        if not isinstance(error, HubUnreachableError):
            return 1
        os.environ[HANDED_OVER] = str(environment.hand_over())
        _restart()
    return 0


def _restart() -> None:
    """Replace this process by one that starts with the current environment."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted


def _prepare_imports() -> None:
    """Prepare the process before gradio is imported."""
    # The imports make a million objects that all stay: collecting garbage among them takes a fifth of the start.
    gc.disable()
    # pydantic reads the help of settings in their source, on Python 3.11 the quicker the fewer modules there are.
    import loratory.engine.config.run  # noqa: F401

    # No usage reports, also from child processes.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loratory ui", description="Open the Loratory page.")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; without --lab, a loopback address (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in the default browser")
    lab = parser.add_argument_group(
        "lab", "several people with accounts; see `loratory people` and `loratory lab files`"
    )
    lab.add_argument("--lab", action="store_true", help="let people sign in, each to a page of their own")
    lab.add_argument("--public-url", metavar="URL", help="https address at which browsers reach the lab")
    lab.add_argument("--socket", metavar="PATH", help="Unix socket to listen on, for a proxy that ends TLS")
    lab.add_argument(
        "--tls-cert", metavar="FILE", help="certificate chain, to listen on --host and --port without a proxy"
    )
    lab.add_argument("--tls-key", metavar="FILE", help="key of the certificate")
    lab.add_argument(
        "--oidc", metavar="FILE", help="YAML file, mode 0600, of an OpenID Connect provider to sign in with"
    )
    lab.add_argument(
        "--identity-header",
        metavar="NAME",
        help="with --socket: header in which the proxy names who is signed in there",
    )
    lab.add_argument("--proxy-user", metavar="USER", help="system user of that proxy; no other user may then connect")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
