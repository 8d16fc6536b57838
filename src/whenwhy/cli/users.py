"""Commands of the file by which people log in to the dashboard: users add, users remove, users list."""

from __future__ import annotations

import sys
from getpass import getpass
from pathlib import Path
from typing import Annotated

import typer

from whenwhy.cli.shared import app, out
from whenwhy.errors import UserError

users_app = typer.Typer(
    help="Who may log in to the dashboard: the file for `whenwhy serve --users`.", no_args_is_help=True
)
app.add_typer(users_app, name="users")

UsersPath = Annotated[Path, typer.Argument(parser=Path, help="The file of users.", metavar="FILE")]
UserName = Annotated[str, typer.Argument(help="Whom.", metavar="NAME")]


@users_app.command("add")
def add_command(
    file: UsersPath,
    name: UserName,
    role: Annotated[str, typer.Option(help="viewer: cells that may be shown. analyst: patients' rows too.")],
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input, not from the terminal.")
    ] = False,
    without_password: Annotated[
        bool, typer.Option("--without-password", help="For a user whom a proxy names (--proxy-header).")
    ] = False,
) -> None:
    """A user who may look; of an earlier one with this name, role and password are replaced."""
    from whenwhy.server.users import add_user

    if password_stdin and without_password:
        raise UserError("--password-stdin and --without-password say different things: choose one.")
    add_user(file, name, role, None if without_password else _password(password_stdin))
    out.print(f"{name} is in {file} as {role}.", soft_wrap=True)


@users_app.command("remove")
def remove_command(file: UsersPath, name: UserName) -> None:
    """A user who may look no more: open pages end at their next request."""
    from whenwhy.server.users import remove_user

    remove_user(file, name)
    out.print(f"{name} is not in {file} any more.", soft_wrap=True)


@users_app.command("list")
def list_command(file: UsersPath) -> None:
    """Names and roles."""
    from whenwhy.server.users import read_users

    for name, entry in sorted(read_users(file).items()):
        out.print(f"{name}: {entry['role']}{'' if entry.get('password') else ', without a password'}", soft_wrap=True)


def _password(from_standard_input: bool) -> str:
    if from_standard_input:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UserError("There is no terminal to ask for the password: add --password-stdin.")
    password = getpass("Password: ")
    if getpass("The same again: ") != password:
        raise UserError("The two passwords differ: run the command again.")
    return password
