"""The command line: the arguments of each command, its function, and how an error is shown."""

import argparse
import io
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from capport import __version__

if TYPE_CHECKING:
    type Subcommands = argparse._SubParsersAction["_Parser"]
    type Taker = ArgumentParser | argparse._ArgumentGroup

_FAILED, _USAGE = 1, 2
_INTERRUPTED, _PIPE_CLOSED = 130, 141  # 128 and the signal's number, as shells have it

# RFC 2606 and RFC 5737.
_EXAMPLES = """\
examples:
  capport check policies/lab.yaml
  capport explain policies/lab.yaml --client 192.0.2.7 http://www.example.org/
  capport grant 192.0.2.7 --for 2h
  mitmdump -s "$(capport script)" --set portal_policy=policies/lab.yaml
"""


class _Parser(ArgumentParser):
    """An argparse parser that prints an error as one line."""

    def error(self, message: str) -> NoReturn:
        """Prints `message` and ends the process with the exit status for wrong usage."""
        self.exit(_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    That is 0, or 1 for a failure that is reported on stderr, or 2 for wrong usage.
    """
    _prepare_streams()
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does. Without this, Python would report the same
        # error again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _PIPE_CLOSED


def _prepare_streams() -> None:
    """Opens the standard streams that are closed, and lets stdout print any character.

    The program that starts a command may have closed some of them. The next files to be opened
    would then get their descriptors. A character that the terminal's encoding lacks (an ellipsis in
    Latin-1, a file name that is not UTF-8) is printed as an escape, as on stderr.
    """
    for name, how in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), how))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    from capport.commands import CommandError
    from capport.extras import EXTRAS, lacking

    try:
        status: int | None = _function(arguments.function)(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except CommandError as error:
        print(error, file=sys.stderr)
        return _FAILED
    except ModuleNotFoundError as error:
        extra = next((name for name, modules in EXTRAS.items() if error.name in modules), None)
        if extra is None:
            raise
        print(f"this command {lacking(extra)}", file=sys.stderr)
        return _FAILED
    except OSError as error:
        print(_message(error), file=sys.stderr)
        return _FAILED
    return status or 0


def _function(name: str) -> Callable[[Any], Any]:
    """Imports `MODULE:NAME`. A module is imported only when a command needs it."""
    module, _, function = name.partition(":")
    found: Callable[[Any], Any] = getattr(import_module(module), function)
    return found


def _message(error: OSError) -> str:
    if error.filename is None or error.strerror is None:
        return error.strerror or str(error)
    return f"{error.filename}: {error.strerror}"


def parser() -> ArgumentParser:
    """The parser of every command and its arguments."""
    top = _Parser(
        prog="capport",
        description="An HTTP 511 captive portal (RFC 6585 section 6) for mitmproxy.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"capport {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_policies(commands)
    _add_clients(commands)
    _add_router(commands)
    _add_voucher(commands)
    _add_accounts(commands)
    _add_watching(commands)
    _add_running(commands)
    return top


def _add_policies(commands: "Subcommands") -> None:
    about = "say whether a policy can be used"
    _add(commands, "check", "check:check", about, _takes_policy_file)
    about = "say what a client would get, and why"
    explain = _add(commands, "explain", "explain:explain_url", about, _takes_policy_file)
    _takes(explain, "url", "URL", "the URL it asks for: http or https", type=_URL)
    _takes(explain, "--client", "ADDRESS", "the client's address", type=_ADDRESS, required=True)
    about = "the client's MAC address (the one that the kernel knows)"
    _takes(explain, "--mac", None, about, type=_MAC)
    _takes(explain, "--method", None, "the method (GET)", default="GET", type=_method)
    about = "a header field, such as 'If-Match: \"a\"'; may be given more than once"
    _takes_many(explain, "--header", "FIELD", about, dest="fields", type=_field)
    about = "how many requests it has sent just before this one (0)"
    _takes(explain, "--after", "COUNT", about, type=int, default=0)
    _takes(explain, "--sessions", "STORE", "the session store (the policy's)")
    _takes_json(explain)
    diff = _add(commands, "diff", "diff:diff", "say which verdicts change under another policy")
    _takes(diff, "old", "OLD", "the policy file in force")
    _takes(diff, "new", "NEW", "the policy file to be tried")
    about = "a file of events: each request in it is decided again; may be given more than once"
    _takes_many(diff, "--events", "FILE", about)
    _takes(diff, "--flows", "FILE", "the same with a flow file of mitmproxy")
    _takes(diff, "--sessions", "STORE", "the session store (OLD's)")
    _takes_json(diff)


def _add_clients(commands: "Subcommands") -> None:
    grant = _add(commands, "grant", "grants:grant", "make a client known: open a session")
    about = "an address on the link stands for its MAC; MAC@ADDRESS means both together"
    _takes(grant, "who", "ADDRESS|MAC", about, type=_CLIENT_ID)
    _takes_lifetime(grant, "90s, 30m, 2h or 7d (the policy's sessions.lifetime)")
    _takes(grant, "--name", None, "whose device it is; shown in the list", type=_name)
    _takes_store(grant)
    about = "make a client unknown: end its sessions"
    revoke = _add(commands, "revoke", "grants:revoke", about, _takes_store)
    about = "the client's address or MAC, whichever its session is filed under"
    _takes(revoke, "who", "ADDRESS|MAC", about, type=_CLIENT_ID)
    about = "list known clients, and why they are known"
    _add(commands, "clients", "clients:clients", about, _takes_store, _takes_json)
    about = "sessions from one store to another"
    actions = _group(commands, "sessions", "export|import", about, ", as JSON Lines.")
    about = "print the open sessions"
    _add(actions, "export", "session_transfer:export", about, _takes_store)
    about = "put exported sessions into a store"
    bring = _add(actions, "import", "session_transfer:bring", about, _takes_store)
    _takes(bring, "file", "FILE", "what was exported (stdin)", nargs="?")
    about = "list the routers that share their sessions, and their lag"
    _add(commands, "fleet", "fleet:fleet", about, _takes_store, _takes_json)


def _add_router(commands: "Subcommands") -> None:
    about = "the kernel's part, in nftables"
    actions = _group(commands, "router", "up|down|show", about, ". Needs CAP_NET_ADMIN.")
    about = "put the policy's rules in force"
    up = _add(actions, "up", "router:up", about, _takes_policy_file)
    _takes(up, "--sessions", "STORE", "the session store (the policy's)")
    about = "mitmproxy's port (8080); give several to share the clients among them"
    _takes_many(up, "--proxy-port", "PORT", about, dest="proxy_ports", type=_PORT)
    for name, about in (("down", "remove the rules"), ("show", "print the rules in force")):
        action = _add(actions, name, f"router:{name}", about)
        _takes(action, "policy_file", "POLICY", "ignored", nargs="?")


def _add_voucher(commands: "Subcommands") -> None:
    about, more = "vouchers for the embedded login server", " (login_server.conditions: voucher)."
    actions = _group(commands, "voucher", "new|list|revoke|clock", about, more)
    new = _add(actions, "new", "voucher:new", "make vouchers, and print a sheet of them")
    _takes(new, "--count", None, "how many (1)", type=_count(1000), default=1)
    _takes_lifetime(new, "for how long each admits a device (the policy's sessions.lifetime)")
    _takes(new, "--devices", None, "devices that each admits (1)", type=_count(1000), default=1)
    about = "how long it may wait for its first use (for ever)"
    _takes(new, "--valid", "TIME", about, type=_duration)
    _takes(new, "--note", None, "what they are for; shown in the list", type=_name)
    about = "list vouchers, without their codes"
    listing = _add(actions, "list", "voucher:show", about, _takes_json)
    revoke = _add(actions, "revoke", "voucher:revoke", "end a voucher and the sessions it opened")
    _takes(revoke, "number", "NUMBER", "as in the list", type=_count(1 << 53))
    clock = _add(actions, "clock", "voucher:clock", "show the time by which vouchers expire")
    about = "confirm that the clock is right now, and was ahead when it showed a later time"
    _takes_flag(clock, "--is-right", about)
    for command in (new, listing, revoke, clock):
        _takes_store(command)


def _add_accounts(commands: "Subcommands") -> None:
    about, more = "users who may sign in with a password", " (login_server.conditions: password)."
    actions = _group(commands, "user", "add|list|remove", about, more)
    add = _add(actions, "add", "accounts:add_user", "add a user, or change the password")
    _takes(add, "name", "NAME", "the password is asked for, or read from stdin")
    users = _add(actions, "list", "accounts:list_users", "list users by name")
    remove = _add(actions, "remove", "accounts:remove_user", "remove a user")
    _takes(remove, "name", "NAME", "as in the list")
    about = "bearer tokens for the portal's API"
    actions = _group(commands, "token", "new|list|remove", about, " over TCP.")
    new = _add(actions, "new", "accounts:new_token", "make a token, and print it this once")
    about = "the token's name; an existing token with this name is replaced"
    _takes(new, "name", "NAME", about, type=_name)
    tokens = _add(actions, "list", "accounts:list_tokens", "list tokens by name")
    end = _add(actions, "remove", "accounts:remove_token", "end a token")
    _takes(end, "name", "NAME", "as in the list", type=_name)
    for command in (add, users, remove, new, tokens, end):
        _takes_store(command)


def _add_watching(commands: "Subcommands") -> None:
    report = _add(commands, "report", "report:report", "say what a portal did to clients")
    about = "files of events, the oldest first (events.jsonl)"
    _takes(report, "events", "EVENTS", about, nargs="*")
    _takes(report, "--flows", "FILE", "a flow file of mitmproxy instead")
    form = report.add_mutually_exclusive_group()
    _takes_json(form)
    _takes(form, "--html", "FILE", "write a page that needs no network")
    about = "exit with status 3 if there is a finding as bad as that"
    _takes(report, "--fail-on", None, about, choices=("note", "warning", "error"))
    about = "leave out the findings that an earlier report (--json) has"
    _takes(report, "--baseline", "FILE", about)
    about = "say which findings are new in B, and which are gone: reports (--json), or events"
    _takes(report, "--compare", ("A", "B"), about, nargs=2)
    follow = _add(commands, "events", "follow:events", "show the events of a portal")
    about = "their file (events.jsonl)"
    _takes(follow, "file", "FILE", about, nargs="?", default="events.jsonl")
    _takes_flag(follow, "--follow", "wait for more, until Ctrl-C")
    _takes(follow, "--client", "ADDRESS|MAC", "only those of this client", type=_CLIENT_ID)


def _add_running(commands: "Subcommands") -> None:
    run = _add(commands, "run", "run:run", "run the portal without a user interface")
    _takes(run, "--policy", "FILE", "the policy file (the embedded policy)")
    _takes(run, "--sessions", "STORE", "where sessions are kept")
    _takes(run, "--events", "FILE", "the file for events, one JSON line each")
    about = "regular (an explicit proxy), transparent, socks5 or tun, each may end in @PORT"
    _takes(run, "--mode", None, about, action="append")
    _takes(run, "--listen-host", "ADDRESS", "the address to listen on (all)")
    about = "the port (8080); 0: any free one"
    _takes(run, "--listen-port", "PORT", about, type=_free_or_port)
    about = "serve clients in N more processes, each for a share of the clients"
    _takes(run, "--workers", "N", about, type=_count(32))
    about = "a mitmproxy option, as in mitmdump"
    _takes_many(run, "--set", "OPTION=VALUE", about, dest="options")
    _add_behind(commands)
    login = _add(commands, "login", "login:serve", "run the login server in a process of its own")
    _takes(login, "--policy", "FILE", "the policy with the login_server", required=True)
    _takes(login, "--sessions", "STORE", "where sessions are kept")
    _takes(login, "--socket", "PATH", "the Unix socket of the API (none)")
    _add(commands, "script", "script:script", "print the path for mitmdump -s")


def _add_behind(commands: "Subcommands") -> None:
    about = "run a command behind a portal, and say what it did"
    behind = _add(commands, "behind", "behind:behind", about)
    about = "511, redirect, page, script, forged-tls, silent, dns-lie or reset (511)"
    _takes(behind, "--as", "KIND[,KIND]|all", about, dest="kinds", type=_kinds, default="511")
    about = "capport itself answers for every name, with a CA that is trusted"
    _takes_flag(behind, "--offline", about)
    about = "open a session after this time (never)"
    _takes(behind, "--grant-after", "TIME", about, type=_duration)
    about = "end the command after this time (one kind: never; several: 60s each)"
    _takes(behind, "--timeout", "TIME", about, type=_duration)
    _takes_flag(behind, "--proxy", "use proxy variables, also as root, and no network namespace")
    about = "exit status 3 if there is a finding of this level (warning, error)"
    _takes(behind, "--fail-on", "LEVEL", about, choices=("warning", "error"))
    _takes_json(behind)
    _takes(behind, "command", "COMMAND", "put -- before it", nargs="+")


def _add(
    within: "Subcommands",
    name: str,
    function: str,
    about: str,
    *takes: Callable[[ArgumentParser], None],
) -> ArgumentParser:
    command = within.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    command.set_defaults(function=f"capport.commands.{function}")
    for add_arguments in takes:
        add_arguments(command)
    return command


def _group(within: "Subcommands", name: str, actions: str, about: str, more: str) -> "Subcommands":
    """A command that is followed by one of `actions`. `more` ends its description."""
    listed = f"{about}: {actions.replace('|', ', ')}"
    description = f"{about[0].upper()}{about[1:]}{more}"
    command = within.add_parser(name, help=listed, description=description)
    return command.add_subparsers(title="actions", metavar=actions, required=True)


def _takes(
    command: "Taker", name: str, metavar: str | tuple[str, ...] | None, about: str, **how: Any
) -> None:
    command.add_argument(name, metavar=metavar, help=about, **how)


def _takes_many(command: "Taker", name: str, metavar: str, about: str, **how: Any) -> None:
    _takes(command, name, metavar, about, action="append", default=[], **how)


def _takes_flag(command: "Taker", name: str, about: str) -> None:
    command.add_argument(name, action="store_true", help=about)


def _takes_policy_file(command: ArgumentParser) -> None:
    _takes(command, "policy_file", "POLICY", "the policy file")


def _takes_lifetime(command: ArgumentParser, about: str) -> None:
    _takes(command, "--for", "TIME", about, dest="lifetime", type=_duration)


def _takes_store(command: ArgumentParser) -> None:
    about = "the session store: a path, sqlite:///PATH or redis://…"
    _takes(command, "--sessions", "STORE", about)
    _takes(command, "--policy", "FILE", "a policy that names the store")


def _takes_json(command: "Taker") -> None:
    _takes_flag(command, "--json", "print JSON, for programs")


# The types of the arguments. Modules are imported in the functions, so that commands start fast.
# An error has the text of the ValueError.


def _read[Value](read: Callable[[str], Value], text: str) -> Value:
    try:
        return read(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _kinds(text: str) -> object:
    from capport.testing.kinds import KINDS, kind_named

    names = KINDS if text == "all" else dict.fromkeys(text.split(","))
    return [_read(kind_named, name) for name in names]


def _by(place: str) -> Callable[[str], object]:
    """The argument type whose values the function `MODULE:NAME` of `capport.core` parses."""
    return lambda text: _read(_function(f"capport.core.{place}"), text)


_CLIENT_ID = _by("client:parse_client_id")
_ADDRESS = _by("client:parse_address")
_MAC = _by("client:parse_mac")
_URL = _by("explanation:parse_url")
_PORT = _by("place:parse_port")


def _duration(text: str) -> float:
    from capport.core.session import LONGEST
    from capport.policy.values import duration

    return _read(duration(1, LONGEST), text)


def _name(text: str) -> str:
    from capport.policy.values import for_people

    if not text.isprintable():
        raise ArgumentTypeError(f"{text!r} has characters that cannot be shown")
    return _read(for_people, text)


def _method(text: str) -> str:
    from capport.core.http import is_token

    if not is_token(text):  # RFC 9110 section 9.1; case matters
        raise ArgumentTypeError(f"{text!r} is not a method, such as GET")
    return text


def _field(text: str) -> tuple[bytes, bytes]:
    from capport.core.http import is_token

    name, colon, value = text.partition(":")
    if not colon or not is_token(name):
        raise ArgumentTypeError(f"{text!r} is not a header field, such as 'Accept: text/html'")
    return name.encode(), value.strip().encode()


def _free_or_port(text: str) -> object:
    return 0 if text == "0" else _PORT(text)


def _count(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not text.isascii() or not 1 <= int(text) <= most:
            raise ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")
        return int(text)

    return read
