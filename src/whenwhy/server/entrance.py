"""What is said about who may look flows in; a way of knowing who asks, keys and certificates flow out."""

from __future__ import annotations

import ipaddress
import os
import secrets
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from whenwhy.errors import UserError
from whenwhy.server.authentication import (
    Anyone,
    Authentication,
    Link,
    Proxy,
    SessionCookies,
    derived,
)
from whenwhy.server.listening import is_this_machine_alone
from whenwhy.server.passwords import Passwords
from whenwhy.server.users import User, UsersFile
from whenwhy.store.access_log import operating_system_user
from whenwhy.store.open import Role

#: What signs has at least so many bytes.
SECRET_BYTES = 32


@dataclass(frozen=True)
class Entrance:
    """Who may look, as what, and by which way they are known.

    Args:
        role: of whoever opens the address with a token that is printed. None: nobody is asked, and everybody is a viewer.
        users: the file of names, roles and password hashes by which people log in.
        proxy_header: the header in which a proxy names the user, one of `users`.
        proxy_address: the proxy's; its word on the browser's address and scheme counts too.
        origins: hosts by which browsers come besides the address itself, HOST or HOST:PORT.
        tls_certificate: a PEM file; pages are served by https.
        tls_key: its key, a PEM file.
        secret_file: signs sessions, so that they survive a restart; made if it is not there. None: a new secret each time.
        allow_anyone: others may reach the address without being asked who they are.
        allow_plain_http: passwords and tokens may travel over a network unencrypted.

    Example:
        >>> Entrance().check("0.0.0.0")
        Traceback (most recent call last):
        whenwhy.errors.UserError: Others reach the address '0.0.0.0', and nobody asks who they are: add --users FILE, or \
leave the address at 127.0.0.1 and come through an SSH tunnel (--allow-anyone shows every one of them what viewers see).
    """

    role: Role | None = None
    users: Path | None = None
    proxy_header: str | None = None
    proxy_address: str = "127.0.0.1"
    origins: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    secret_file: Path | None = None
    allow_anyone: bool = False
    allow_plain_http: bool = False

    @property
    def scheme(self) -> str:
        """What pages are served by: http or https."""
        return "http" if self.tls_certificate is None else "https"

    def check(self, address: str) -> None:
        """Nothing, where what is said agrees with itself and is safe at this address.

        Raises:
            UserError: it does not, or is not.
        """
        ways = {"--role": self.role, "--users": self.users, "--allow-anyone": self.allow_anyone}
        given = [name for name, value in ways.items() if value]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} are different ways of knowing who asks: choose one.")
        if self.proxy_header is not None and self.users is None:
            raise UserError("--proxy-header names users, and nothing says what they may see: add --users FILE.")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UserError("A certificate and its key belong together: give both --tls-certificate and --tls-key.")
        try:
            ipaddress.ip_address(self.proxy_address)
        except ValueError:
            raise UserError(f"'{self.proxy_address}' is no address of a proxy: give its IP address.") from None
        if is_this_machine_alone(address):
            return
        if not given:
            raise UserError(
                f"Others reach the address '{address}', and nobody asks who they are: add --users FILE, or leave the "
                "address at 127.0.0.1 and come through an SSH tunnel (--allow-anyone shows every one of them what viewers "
                "see)."
            )
        asks = self.role is not None or (self.users is not None and self.proxy_header is None)
        if asks and self.scheme == "http" and not self.allow_plain_http:
            what = "Tokens" if self.users is None else "Passwords"
            raise UserError(
                f"{what} would travel to '{address}' unencrypted: add --tls-certificate and --tls-key, or put a proxy that "
                "speaks https on this machine (--allow-plain-http lets them travel so)."
            )

    def secret(self) -> bytes:
        """What signs: of the file, or random.

        Raises:
            UserError: the file cannot be read or made, is too short, or others may read it.
        """
        if self.secret_file is None:
            return secrets.token_bytes(SECRET_BYTES)
        file = self.secret_file
        try:
            try:
                with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as made:
                    made.write(secrets.token_hex(SECRET_BYTES).encode())
            except FileExistsError:
                pass
            with file.open("rb") as opened:
                mode, secret = stat.S_IMODE(os.fstat(opened.fileno()).st_mode), opened.read().strip()
        except OSError as error:
            raise UserError(f"{file} cannot be read or made ({error.strerror}): give another --secret-file.") from None
        if mode & 0o077:
            raise UserError(f"Others may read or change {file} (mode {mode:04o}): run `chmod 600 {file}`.")
        if len(secret) < SECRET_BYTES:
            raise UserError(f"{file} is shorter than {SECRET_BYTES} bytes: remove it, and a new secret is made.")
        return secret

    def authentication(self, secret: bytes, port: int) -> Authentication:
        """The way of knowing who asks.

        Args:
            secret: signs sessions.
            port: the server's, so that two dashboards of a machine have sessions of their own.

        Raises:
            UserError: the file of users cannot be used.
        """
        cookies = SessionCookies(derived(secret, "cookies"), f"whenwhy_session_{port}")
        if self.users is not None:
            users = UsersFile(self.users)
            if self.proxy_header is not None:
                return Proxy(self.proxy_header, self.proxy_address, users)
            return Passwords(users, cookies)
        if self.role is not None:
            return Link(User(operating_system_user(), self.role), cookies)
        return Anyone()

    def tls(self) -> ssl.SSLContext | None:
        """What encrypts, or None.

        Raises:
            UserError: no certificate and key that belong together.
        """
        if self.tls_certificate is None or self.tls_key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # A key that is locked by a password would be asked for on a terminal.
            context.load_cert_chain(self.tls_certificate, self.tls_key, password="")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
            raise UserError(
                f"{self.tls_certificate} and {self.tls_key} are no certificate and its key ({why}): give two PEM files "
                "that belong together."
            ) from None
        return context
