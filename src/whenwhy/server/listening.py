"""An address and a port flow in, listening sockets and the names by which browsers may reach them flow out."""

from __future__ import annotations

import errno
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from socket import gaierror, socket

from bokeh.server.util import bind_sockets

from whenwhy.errors import UserError

#: Every address of this machine at once.
EVERYWHERE = ("0.0.0.0", "::", "")

#: The ports that browsers leave out.
USUAL_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class Listening:
    """Bound sockets, the page's address, and the names, HOST or HOST:PORT, by which browsers may reach it."""

    sockets: list[socket]
    port: int
    url: str
    hosts: frozenset[str]


def is_this_machine_alone(address: str) -> bool:
    """Whether nobody on another machine reaches the address.

    Example:
        >>> is_this_machine_alone("127.0.0.1"), is_this_machine_alone("0.0.0.0")
        (True, False)
    """
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def host_named(text: str) -> str:
    """A host that browsers may name, as they write it.

    Raises:
        UserError: not HOST or HOST:PORT.

    Example:
        >>> host_named("Whenwhy.Hospital.org:8443")
        'whenwhy.hospital.org:8443'
        >>> host_named("*")
        Traceback (most recent call last):
        whenwhy.errors.UserError: '*' is no single origin: give a host that browsers show in their address line, such as \
whenwhy.hospital.org or localhost:8080.
    """
    host = text.lower()
    if not _HOST.fullmatch(host):
        raise UserError(
            f"'{text}' is no single origin: give a host that browsers show in their address line, such as "
            "whenwhy.hospital.org or localhost:8080."
        )
    return host


def without_usual_port(host: str, scheme: str) -> str:
    """The host as browsers write it, who leave out the usual port of a scheme.

    Example:
        >>> without_usual_port("whenwhy.org:443", "https"), without_usual_port("whenwhy.org:443", "http")
        ('whenwhy.org', 'whenwhy.org:443')
    """
    return host.lower().removesuffix(f":{USUAL_PORTS[scheme]}")


def listen(address: str, port: int, scheme: str = "http", origins: Sequence[str] = ()) -> Listening:
    """Sockets that listen on an address; port 0 takes a free one.

    Args:
        address: one of this machine, or all of them: then `origins` say by which names browsers come.
        port: 0 to 65535.
        scheme: http or https.
        origins: further hosts by which browsers reach it, HOST or HOST:PORT.

    Raises:
        UserError: not this machine's address, no single origin, or a port that cannot be had.
    """
    named = [host_named(one) for one in origins]
    if address in EVERYWHERE and not named:
        raise UserError(
            f"The address '{address}' does not say by which name browsers come: add --origin HOST[:PORT], as it stands "
            "in their address line."
        )
    if not 0 <= port <= 65535:
        raise UserError(f"There is no port {port}: choose one from 1 to 65535, or 0 for a free one.")
    # The name may mean several addresses, which would be several ports where a free one is asked for.
    bound_to = "127.0.0.1" if address == "localhost" else address
    try:
        sockets, found = bind_sockets(bound_to, port)
    except gaierror:
        raise UserError(f"This machine has no address '{address}': use 127.0.0.1.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"Port {port} is in use: choose another one, or 0 for a free one.") from None
        if error.errno == errno.EACCES:
            raise UserError(f"Port {port} needs rights that you do not have: choose one above 1023.") from None
        raise UserError(f"The address {address}, port {port}, cannot be had ({error.strerror}).") from None
    if address in EVERYWHERE:
        own = []
    elif is_this_machine_alone(address):
        own = ["[::1]" if ":" in bound_to else "127.0.0.1", "localhost", _in_brackets(bound_to)]
    else:
        own = [_in_brackets(bound_to)]
    hosts = frozenset([*named, *(f"{name}:{found}" for name in own)])
    shown = f"{_in_brackets(bound_to)}:{found}" if own else named[0]
    return Listening(sockets, found, f"{scheme}://{shown}/", hosts)


def _in_brackets(address: str) -> str:
    return f"[{address}]" if ":" in address else address.lower()
