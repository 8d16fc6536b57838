"""An address and a port flow in, listening sockets and the origins that may talk to them flow out."""

from __future__ import annotations

import errno
import ipaddress
from dataclasses import dataclass
from socket import gaierror, socket

from bokeh.server.util import bind_sockets

from whenwhy.errors import UserError


@dataclass(frozen=True)
class Listening:
    """Bound sockets, the page's address, and the exact origins of websockets."""

    sockets: list[socket]
    port: int
    url: str
    origins: list[str]


def refuse_other_machines(address: str) -> None:
    """Nothing, where only this machine reaches the address.

    Raises:
        UserError: others could reach it.

    Example:
        >>> refuse_other_machines("127.0.0.1")
        >>> refuse_other_machines("0.0.0.0")
        Traceback (most recent call last):
        whenwhy.errors.UserError: The dashboard has no authentication yet, so it answers this machine alone and not \
'0.0.0.0': leave the address at 127.0.0.1 and reach it from elsewhere through an SSH tunnel.
    """
    try:
        only_here = address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        only_here = False
    if not only_here:
        raise UserError(
            f"The dashboard has no authentication yet, so it answers this machine alone and not '{address}': "
            "leave the address at 127.0.0.1 and reach it from elsewhere through an SSH tunnel."
        )


def listen(address: str, port: int) -> Listening:
    """Sockets that listen on this machine's own address; port 0 takes a free one.

    Raises:
        UserError: the address is not this machine's own, or the port cannot be had.
    """
    refuse_other_machines(address)
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
    host = f"[{bound_to}]" if ":" in bound_to else bound_to
    hosts = dict.fromkeys([host, "localhost", "[::1]" if ":" in bound_to else "127.0.0.1"])
    return Listening(sockets, found, f"http://{host}:{found}/", [f"{name}:{found}" for name in hosts])
