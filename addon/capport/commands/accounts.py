"""`capport user` and `capport token`: users who sign in, and tokens for the portal's API."""

import contextlib
import getpass
import sys
import time
from argparse import Namespace

from capport.api import tokens
from capport.commands import CommandError, chosen_policy
from capport.commands.login_records import records_of, warn_unless_asked
from capport.core.policy import Conditions
from capport.login.passwords import MAX_PASSWORD, hash_password, normal_name


def add_user(arguments: Namespace) -> None:
    """Adds a user, or changes a user's password.

    The password is read from the terminal or from stdin, because `ps` shows arguments.
    """
    name = _name(arguments)
    try:
        hashed = hash_password(_typed(name) if sys.stdin.isatty() else _piped())
    except UnicodeDecodeError as error:
        raise CommandError(f"the password is not {error.encoding}: nothing is changed") from None
    except EOFError:
        raise CommandError("no password was typed: nothing is changed") from None
    except ValueError as error:
        raise CommandError(str(error)) from None
    with contextlib.closing(records_of(arguments)) as records:
        records.put_user(name, hashed, time.time())
    print(f"{name} can sign in")
    warn_unless_asked(arguments, chosen_policy(arguments), Conditions.PASSWORD)


def list_users(arguments: Namespace) -> None:
    """Prints each user's name."""
    with contextlib.closing(records_of(arguments)) as records:
        for name in records.users():
            print(name)


def remove_user(arguments: Namespace) -> None:
    """Removes a user. The user's sessions last until their end."""
    name = _name(arguments)
    with contextlib.closing(records_of(arguments)) as records:
        if not records.drop_user(name):
            raise CommandError(f"there is no user {name}; see capport user list")
    print(f"{name} cannot sign in any more; capport clients lists the sessions that are still open")


def new_token(arguments: Namespace) -> None:
    """Makes a token and prints it; only its digest is stored."""
    token = tokens.new_token()
    with contextlib.closing(records_of(arguments)) as records:
        records.put_token(arguments.name, tokens.token_digest(token), time.time())
    print(token)


def list_tokens(arguments: Namespace) -> None:
    """Prints each token's name; the tokens themselves are not stored."""
    with contextlib.closing(records_of(arguments)) as records:
        for name in records.tokens():
            print(name)


def remove_token(arguments: Namespace) -> None:
    """Removes a token. Sessions that were opened with it last until their end."""
    name: str = arguments.name
    with contextlib.closing(records_of(arguments)) as records:
        if not records.drop_token(name):
            raise CommandError(f"there is no token {name}; see capport token list")
    print(f"the token of {name} is not valid any more")


def _name(arguments: Namespace) -> str:
    name = normal_name(arguments.name)
    if name is None:
        raise CommandError(f"{arguments.name!r} is not a name: use 1 to 64 printable characters")
    return name


def _piped() -> str:
    """The first line of stdin, up to a length that is certainly too long for a password."""
    return sys.stdin.readline(2 * MAX_PASSWORD).rstrip("\r\n")


def _typed(name: str) -> str:
    password = getpass.getpass(f"Password for {name}: ")
    if getpass.getpass("The same again: ") != password:
        raise CommandError("the two passwords differ: nothing is changed")
    return password
