"""Fetch the images that rows name by an https address, where the person chose that."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from loratory.engine.data.media.store import MAX_IMAGE_BYTES
from loratory.engine.data.records import RowProblemError
from loratory.engine.public_hosts import PrivateHostError, address_of

if TYPE_CHECKING:
    import httpx

_SECONDS, _PIECE_SECONDS, _REDIRECTS = 30.0, 10.0, 3


def fetch_image(
    url: str, resolve: Callable[[str, int], str] = address_of, transport: "httpx.BaseTransport | None" = None
) -> bytes:
    """Return what an https address answers, after at most three redirects; hosts of private networks are not asked.

    Args:
        resolve: Returns the address of a host that is connected to.
        transport: Replaces the network.

    Raises:
        RowProblemError: If it is not such address, or does not answer with at most 64 MiB within 30 seconds.
    """
    import httpx  # not before an image is fetched

    deadline = time.monotonic() + _SECONDS
    try:
        with httpx.Client(trust_env=False, timeout=_PIECE_SECONDS, transport=transport) as client:
            for _ in range(_REDIRECTS + 1):
                host = urlsplit(url).hostname or ""
                if not url.lower().startswith("https://") or not host:
                    raise RowProblemError("image", "its address does not begin with https://")
                parsed = httpx.URL(url)
                pinned = parsed.copy_with(host=resolve(host, parsed.port or 443))
                headers = {"Host": parsed.netloc.decode(), "User-Agent": "Loratory"}
                with client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": host}) as response:
                    if response.is_redirect:
                        url = str(parsed.join(response.headers["location"]))
                        continue
                    if response.status_code != 200:
                        raise RowProblemError("image", f"{host} answered {response.status_code}")
                    return _read(response, host, deadline)
    except PrivateHostError as error:
        raise RowProblemError("image", f"{error}, which is not asked") from error
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise RowProblemError("image", f"its address did not answer ({type(error).__name__})") from error
    raise RowProblemError("image", f"its address leads on more than {_REDIRECTS} times")


def _read(response: "httpx.Response", host: str, deadline: float) -> bytes:
    data = bytearray()
    for piece in response.iter_bytes():
        data += piece
        if len(data) > MAX_IMAGE_BYTES:
            raise RowProblemError("image", f"{host} sends more than {MAX_IMAGE_BYTES >> 20} MiB")
        if time.monotonic() > deadline:
            raise RowProblemError("image", f"{host} took more than {_SECONDS:g} s")
    return bytes(data)
