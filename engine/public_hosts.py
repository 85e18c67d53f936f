"""Addresses that may be asked for a person: a name that leads into a private network is refused before it is connected to."""

import ipaddress
import socket

_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # holds an IPv4 address, maybe a private one


class PrivateHostError(Exception):
    """A host is in a private network; the message has its name."""


def address_of(host: str, port: int, *, allows_private: bool = False) -> str:
    """Return an address of a host where all of them may be asked; connect to it, as the name may lead elsewhere then.

    Raises:
        OSError: If the host is not known.
        PrivateHostError: If one of its addresses is not public.
    """
    addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not allows_private and not all(map(_is_public, addresses)):
        raise PrivateHostError(f"{host} is an address of a private network")
    return addresses[0]


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        wraps_another = address.ipv4_mapped or address.sixtofour or address.teredo or address in _TRANSLATED
        return address.is_global and not address.is_multicast and not wraps_another
    return address.is_global and not address.is_multicast
