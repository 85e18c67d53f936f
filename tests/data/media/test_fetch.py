"""Images that rows name by an address: what is fetched, what is refused, and that they are fetched once."""

import httpx
import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.media import row_images
from loratory.engine.data.media.fetch import fetch_image
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.source import SourceOptions
from loratory.engine.public_hosts import PrivateHostError
from tests.data.checks import write_rows
from tests.data.pictures import picture

RED = picture("red", (40, 30))
URL = "https://images.example/a.png"


class Network:
    """A network with some pages; notes what was requested of which address."""

    def __init__(self, **pages):
        self.pages = pages
        self.requests = []

    def fetch(self, url):
        return fetch_image(url, self.resolve, httpx.MockTransport(self.answer))

    def resolve(self, host, port):
        if host.startswith("inside"):
            raise PrivateHostError(f"{host} is an address of a private network")
        return "192.0.2.7"

    def answer(self, request):
        self.requests.append((request.url.host, request.headers["host"], request.extensions["sni_hostname"]))
        return self.pages[request.url.path.strip("/")]


def test_an_image_is_fetched_from_the_address_that_was_checked():
    network = Network(a=httpx.Response(200, content=RED))

    assert network.fetch("https://images.example/a") == RED
    assert network.requests == [("192.0.2.7", "images.example", "images.example")]


def test_redirects_are_checked_as_the_first_address_is():
    network = Network(
        a=httpx.Response(302, headers={"location": "/b"}),
        b=httpx.Response(200, content=RED),
        inward=httpx.Response(302, headers={"location": "https://inside.example/secret"}),
        plain=httpx.Response(302, headers={"location": "http://images.example/b"}),
        circle=httpx.Response(302, headers={"location": "/circle"}),
    )

    assert network.fetch("https://images.example/a") == RED
    for path, why in {"inward": "private network", "plain": "does not begin", "circle": "more than 3 times"}.items():
        with pytest.raises(RowProblemError, match=why):
            network.fetch(f"https://images.example/{path}")


@pytest.mark.parametrize(
    ("url", "why"),
    {
        "http://images.example/a": "does not begin with https",
        "file:///etc/passwd": "does not begin with https",
        "https://inside.example/a": "private network, which is not asked",
        "https://images.example/missing": "images.example answered 404",
        "https://images.example/large": "images.example sends more than 64 MiB",
        "https://[": "did not answer",
    }.items(),
)
def test_what_cannot_be_fetched_says_why(url, why):
    network = Network(
        missing=httpx.Response(404),
        large=httpx.Response(200, content=iter([bytes(1 << 20)] * 65)),
    )

    with pytest.raises(RowProblemError, match=why):
        network.fetch(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]"])
def test_hosts_of_private_networks_are_not_asked(host):
    with pytest.raises(RowProblemError, match="private network"):
        fetch_image(f"https://{host}/a.png")


def test_rows_are_fetched_once_by_choice_and_by_no_reader_that_may_not(home, tmp_path, monkeypatch):
    urls = []
    monkeypatch.setattr(row_images, "fetch_image", lambda url: urls.append(url) or RED)
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "R"}], "image": URL}
    path = write_rows(tmp_path / "rows.jsonl", [row] * 3)

    def read(images, *, fetches):
        config = DatasetConfig(source=str(path), images=images)
        return list(DatasetReader(config, SourceOptions(home=home, fetches_images=fetches)).rows())

    assert all("add fetch to dataset.images" in row.problem for row in read((), fetches=True))
    assert all("was not fetched" in row.problem for row in read(("fetch",), fetches=False))
    assert urls == []
    for fetches in (True, False):
        assert [row.example.messages[0].images[0].width for row in read(("fetch",), fetches=fetches)] == [40] * 3
    assert urls == [URL]
