"""`python -m tests.benchmarks.page_sessions`: what pages that were opened and closed leave behind in the server.

Clients open the page of a server on fakes as a browser does: its document, its layout, the stream that keeps it alive and
all that is asked at the opening. Prints by how much the server's memory has grown.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from tests.browser.show_fake import page_of
from tests.fake_services import fake_services
from tests.page_client import PageClient, read_config

_WARM_UP = 20  # pages before the first figure: what is loaded once does not count


@contextlib.contextmanager
def server(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.page_sessions", "--serve", str(home)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield next(line for line in process.stdout if line.startswith("http")).strip(), psutil.Process(process.pid)
    finally:
        process.communicate()


def serve(home: Path) -> None:
    """The server that is measured; prints its address, and ends with its standard input."""
    with page_of(fake_services(home)) as address:
        print(address, flush=True)
        sys.stdin.read()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=4, help="pages that are open together")
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    with (
        tempfile.TemporaryDirectory(prefix="loratory-benchmark-") as folder,
        server(Path(folder)) as (address, process),
        httpx.Client(base_url=address, timeout=120) as http,
        ThreadPoolExecutor(options.at_once) as clients,
    ):
        config = read_config(http)

        def visit(_: int) -> None:
            with PageClient.open(http, config):
                pass

        list(clients.map(visit, range(_WARM_UP)))
        start = process.memory_info().rss
        print(f"at the start the server holds {start / 1e6:.0f} MB", flush=True)
        for first in range(0, options.pages, 200):
            count = min(200, options.pages - first)
            list(clients.map(visit, range(count)))
            grown = (process.memory_info().rss - start) / 1e6
            print(f"after {first + count:>5,} pages {grown:+.0f} MB (wanted: below +60 after 1,000)", flush=True)


if __name__ == "__main__":
    main()
