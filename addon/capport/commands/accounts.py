"""`capport user` and `capport token`: who may sign in, and who may ask the portal's API."""

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
    """Adds a user, or gives one a new password, which is never an argument: `ps` shows those."""
    name = _name(arguments)
    try:
        hashed = hash_password(_asked(name) if sys.stdin.isatty() else _piped())
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
    """Removes a user. Sessions that were granted last as long as they were to."""
    name = _name(arguments)
    with contextlib.closing(records_of(arguments)) as records:
        if not records.drop_user(name):
            raise CommandError(f"there is no user {name}; see capport user list")
    print(f"{name} cannot sign in any more; see capport clients for what is open")


def new_token(arguments: Namespace) -> None:
    """Makes a token, and prints it: it is kept by its digest only."""
    token = tokens.new_token()
    with contextlib.closing(records_of(arguments)) as records:
        records.put_token(arguments.name, tokens.token_digest(token), time.time())
    print(token)


def list_tokens(arguments: Namespace) -> None:
    """Prints each token's name; the tokens themselves nobody knows any more."""
    with contextlib.closing(records_of(arguments)) as records:
        for name in records.tokens():
            print(name)


def remove_token(arguments: Namespace) -> None:
    """Ends a token. Sessions that were opened with it last as long as they were to."""
    name: str = arguments.name
    with contextlib.closing(records_of(arguments)) as records:
        if not records.drop_token(name):
            raise CommandError(f"there is no token {name}; see capport token list")
    print(f"the token of {name} is no good any more")


def _name(arguments: Namespace) -> str:
    name = normal_name(arguments.name)
    if name is None:
        raise CommandError(f"{arguments.name!r} is no name: 1 to 64 characters that can be shown")
    return name


def _piped() -> str:
    """The first line; no more of it than tells that it is too long."""
    return sys.stdin.readline(2 * MAX_PASSWORD).rstrip("\r\n")


def _asked(name: str) -> str:
    password = getpass.getpass(f"Password for {name}: ")
    if getpass.getpass("The same again: ") != password:
        raise CommandError("that was not the same: nothing is changed")
    return password
