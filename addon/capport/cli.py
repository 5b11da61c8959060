"""The command line: the arguments of each command, its function, and how an error is shown."""

import argparse
import io
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from capport import __version__

if TYPE_CHECKING:
    type Subcommands = argparse._SubParsersAction["_Parser"]

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


def _function(name: str) -> Callable[[Namespace], int | None]:
    """Imports `MODULE:NAME`. A command's module is imported only when the command is run."""
    module, _, function = name.partition(":")
    found: Callable[[Namespace], int | None] = getattr(import_module(module), function)
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
    check = _add(commands, "check", "check:check", "say whether a policy can be used")
    _takes_policy_file(check)
    explain = _add(
        commands, "explain", "explain:explain_url", "say what a client would get, and why"
    )
    _takes_policy_file(explain)
    explain.add_argument("url", type=_url, metavar="URL", help="the URL it asks for: http or https")
    explain.add_argument(
        "--client", type=_address, required=True, metavar="ADDRESS", help="the client's address"
    )
    explain.add_argument(
        "--mac", type=_mac, help="the client's MAC address (the one that the kernel knows)"
    )
    explain.add_argument("--method", default="GET", type=_method, help="the method (GET)")
    explain.add_argument(
        "--header",
        dest="fields",
        action="append",
        default=[],
        type=_field,
        metavar="FIELD",
        help="a header field, such as 'If-Match: \"a\"'; may be given more than once",
    )
    explain.add_argument(
        "--after",
        type=int,
        default=0,
        metavar="COUNT",
        help="how many requests it has sent just before this one (0)",
    )
    explain.add_argument("--sessions", metavar="STORE", help="the session store (the policy's)")
    _takes_json(explain)
    diff = _add(commands, "diff", "diff:diff", "say which verdicts change under another policy")
    diff.add_argument("old", metavar="OLD", help="the policy file in force")
    diff.add_argument("new", metavar="NEW", help="the policy file to be tried")
    diff.add_argument(
        "--events",
        action="append",
        default=[],
        metavar="FILE",
        help="a file of events: each request in it is decided again; may be given more than once",
    )
    diff.add_argument("--flows", metavar="FILE", help="the same with a flow file of mitmproxy's")
    diff.add_argument("--sessions", metavar="STORE", help="the session store (OLD's)")
    _takes_json(diff)


def _add_clients(commands: "Subcommands") -> None:
    grant = _add(commands, "grant", "grants:grant", "make a client known: open a session")
    grant.add_argument(
        "who",
        type=_client_id,
        metavar="ADDRESS|MAC",
        help="an address on the link stands for its MAC; MAC@ADDRESS means both together",
    )
    grant.add_argument(
        "--for",
        dest="lifetime",
        type=_duration,
        metavar="TIME",
        help="90s, 30m, 2h or 7d (the policy's sessions.lifetime)",
    )
    grant.add_argument("--name", type=_name, help="whose device it is; shown in the list")
    _takes_store(grant)
    revoke = _add(commands, "revoke", "grants:revoke", "make a client unknown: end its sessions")
    revoke.add_argument(
        "who",
        type=_client_id,
        metavar="ADDRESS|MAC",
        help="the client's address or MAC, whichever its session is filed under",
    )
    _takes_store(revoke)
    clients = _add(
        commands, "clients", "clients:clients", "list known clients, and why they are known"
    )
    _takes_store(clients)
    _takes_json(clients)
    sessions = commands.add_parser(
        "sessions",
        help="sessions from one store to another: export, import",
        description="Sessions from one store to another, as JSON Lines.",
    )
    actions = sessions.add_subparsers(title="actions", metavar="export|import", required=True)
    _takes_store(_add(actions, "export", "session_transfer:export", "print the open sessions"))
    bring = _add(actions, "import", "session_transfer:bring", "put exported sessions into a store")
    bring.add_argument("file", metavar="FILE", nargs="?", help="what was exported (stdin)")
    _takes_store(bring)
    fleet = _add(
        commands,
        "fleet",
        "fleet:fleet",
        "list the routers that share their sessions, and their lag",
    )
    _takes_store(fleet)
    _takes_json(fleet)


def _add_router(commands: "Subcommands") -> None:
    router = commands.add_parser(
        "router",
        help="the kernel's part, in nftables: up, down, show",
        description="The kernel's part, in nftables. Needs CAP_NET_ADMIN.",
    )
    actions = router.add_subparsers(title="actions", metavar="up|down|show", required=True)
    up = _add(actions, "up", "router:up", "put the policy's rules in force")
    _takes_policy_file(up)
    up.add_argument("--sessions", metavar="STORE", help="the session store (the policy's)")
    up.add_argument(
        "--proxy-port",
        dest="proxy_ports",
        action="append",
        type=_port,
        metavar="PORT",
        help="mitmproxy's port (8080); give several to share the clients among them",
    )
    for name, about in (("down", "take the rules away"), ("show", "print the rules in force")):
        action = _add(actions, name, f"router:{name}", about)
        action.add_argument("policy_file", metavar="POLICY", nargs="?", help="ignored")


def _add_voucher(commands: "Subcommands") -> None:
    voucher = commands.add_parser(
        "voucher",
        help="vouchers for the embedded login server: new, list, revoke, clock",
        description="Vouchers for the embedded login server (login_server.conditions: voucher).",
    )
    actions = voucher.add_subparsers(
        title="actions", metavar="new|list|revoke|clock", required=True
    )
    new = _add(actions, "new", "voucher:new", "make vouchers, and print a sheet of them")
    new.add_argument("--count", type=_count(1000), default=1, help="how many (1)")
    new.add_argument(
        "--for",
        dest="lifetime",
        type=_duration,
        metavar="TIME",
        help="for how long each admits a device (the policy's sessions.lifetime)",
    )
    new.add_argument("--devices", type=_count(1000), default=1, help="devices that each admits (1)")
    new.add_argument(
        "--valid",
        type=_duration,
        metavar="TIME",
        help="how long it may wait for its first use (for ever)",
    )
    new.add_argument("--note", type=_name, help="what they are for; shown in the list")
    _takes_store(new)
    listing = _add(actions, "list", "voucher:show", "list vouchers, without their codes")
    _takes_store(listing)
    _takes_json(listing)
    revoke = _add(actions, "revoke", "voucher:revoke", "end a voucher and the sessions it opened")
    revoke.add_argument("number", type=_count(1 << 53), metavar="NUMBER", help="as in the list")
    _takes_store(revoke)
    clock = _add(actions, "clock", "voucher:clock", "show the time by which vouchers expire")
    clock.add_argument(
        "--is-right",
        action="store_true",
        help="confirm that the clock is right now, and was ahead when it showed a later time",
    )
    _takes_store(clock)


def _add_accounts(commands: "Subcommands") -> None:
    user = commands.add_parser(
        "user",
        help="users who may sign in with a password: add, list, remove",
        description="Users who may sign in with a password (login_server.conditions: password).",
    )
    actions = user.add_subparsers(title="actions", metavar="add|list|remove", required=True)
    add = _add(actions, "add", "accounts:add_user", "add a user, or change the password")
    add.add_argument("name", metavar="NAME", help="the password is asked for, or read from stdin")
    users = _add(actions, "list", "accounts:list_users", "list users by name")
    remove = _add(actions, "remove", "accounts:remove_user", "remove a user")
    remove.add_argument("name", metavar="NAME", help="as in the list")
    token = commands.add_parser(
        "token",
        help="bearer tokens for the portal's API: new, list, remove",
        description="Bearer tokens for the portal's API over TCP.",
    )
    actions = token.add_subparsers(title="actions", metavar="new|list|remove", required=True)
    new = _add(actions, "new", "accounts:new_token", "make a token, and print it this once")
    new.add_argument("name", type=_name, metavar="NAME", help="whose it is; replaces that one")
    tokens = _add(actions, "list", "accounts:list_tokens", "list tokens by name")
    end = _add(actions, "remove", "accounts:remove_token", "end a token")
    end.add_argument("name", type=_name, metavar="NAME", help="as in the list")
    for command in (add, users, remove, new, tokens, end):
        _takes_store(command)


def _add_watching(commands: "Subcommands") -> None:
    report = _add(commands, "report", "report:report", "say what a portal did to clients")
    report.add_argument(
        "events",
        metavar="EVENTS",
        nargs="*",
        help="files of events, the oldest first (events.jsonl)",
    )
    report.add_argument("--flows", metavar="FILE", help="a flow file of mitmproxy's instead")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, for programs")
    form.add_argument("--html", metavar="FILE", help="write a page that needs no network")
    report.add_argument(
        "--fail-on",
        choices=("note", "warning", "error"),
        help="exit with status 3 if there is a finding as bad as that",
    )
    report.add_argument(
        "--baseline", metavar="FILE", help="pass over the findings in an earlier report (--json)"
    )
    report.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="say which findings are new in B, and which are gone: reports (--json), or events",
    )
    follow = _add(commands, "events", "follow:events", "show the events of a portal")
    follow.add_argument(
        "file", metavar="FILE", nargs="?", default="events.jsonl", help="their file (events.jsonl)"
    )
    follow.add_argument("--follow", action="store_true", help="wait for more, until Ctrl-C")
    follow.add_argument(
        "--client", metavar="ADDRESS|MAC", type=_client_id, help="only those of this client"
    )


def _add_running(commands: "Subcommands") -> None:
    run = _add(commands, "run", "run:run", "run the portal without a user interface")
    run.add_argument("--policy", metavar="FILE", help="the policy file (the embedded policy)")
    run.add_argument("--sessions", metavar="STORE", help="where sessions are kept")
    run.add_argument("--events", metavar="FILE", help="the file for events, one JSON line each")
    run.add_argument(
        "--mode",
        action="append",
        help="regular (an explicit proxy), transparent, socks5 or tun, each may end in @PORT",
    )
    run.add_argument("--listen-host", metavar="ADDRESS", help="the address to listen on (all)")
    run.add_argument(
        "--listen-port", type=_free_or_port, metavar="PORT", help="the port (8080); 0: any free one"
    )
    run.add_argument(
        "--workers",
        type=_count(32),
        metavar="N",
        help="serve strangers in N processes of their own, each a share of the clients",
    )
    run.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="a mitmproxy option, as in mitmdump",
    )
    _add_behind(commands)
    login = _add(commands, "login", "login:serve", "run the login server in a process of its own")
    login.add_argument(
        "--policy", required=True, metavar="FILE", help="the policy with the login_server"
    )
    login.add_argument("--sessions", metavar="STORE", help="where sessions are kept")
    login.add_argument("--socket", metavar="PATH", help="the Unix socket of the API (none)")
    _add(commands, "script", "script:script", "print the path for mitmdump -s")


def _add_behind(commands: "Subcommands") -> None:
    behind = _add(
        commands, "behind", "behind:behind", "run a command behind a portal, and say what it did"
    )
    behind.add_argument(
        "--as",
        dest="kinds",
        type=_kinds,
        default="511",
        metavar="KIND[,KIND]|all",
        help="511, redirect, page, script, forged-tls, silent, dns-lie or reset (511)",
    )
    behind.add_argument(
        "--offline",
        action="store_true",
        help="an origin of capport's own answers for every name, with a CA that is trusted",
    )
    behind.add_argument(
        "--grant-after", type=_duration, metavar="TIME", help="open a session meanwhile (never)"
    )
    behind.add_argument(
        "--timeout",
        type=_duration,
        metavar="TIME",
        help="end the command then (with one kind never, with several after 60s each)",
    )
    behind.add_argument(
        "--proxy",
        action="store_true",
        help="use proxy variables, also as root, and no network namespace",
    )
    behind.add_argument(
        "--fail-on",
        choices=("warning", "error"),
        metavar="LEVEL",
        help="exit status 3 if there is a finding of this level (warning, error)",
    )
    _takes_json(behind)
    behind.add_argument("command", nargs="+", metavar="COMMAND", help="put -- before it")


def _add(within: "Subcommands", name: str, function: str, about: str) -> ArgumentParser:
    command = within.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    command.set_defaults(function=f"capport.commands.{function}")
    return command


def _takes_policy_file(command: ArgumentParser) -> None:
    command.add_argument("policy_file", metavar="POLICY", help="the policy file")


def _takes_store(command: ArgumentParser) -> None:
    command.add_argument(
        "--sessions", metavar="STORE", help="the session store: a path, sqlite:///PATH or redis://…"
    )
    command.add_argument("--policy", metavar="FILE", help="a policy that names the store")


def _takes_json(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


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


def _client_id(text: str) -> object:
    from capport.core.client import parse_client_id

    return _read(parse_client_id, text)


def _address(text: str) -> object:
    from capport.core.client import parse_address

    return _read(parse_address, text)


def _mac(text: str) -> object:
    from capport.core.client import parse_mac

    return _read(parse_mac, text)


def _url(text: str) -> object:
    from capport.core.explanation import parse_url

    return _read(parse_url, text)


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


def _port(text: str) -> int:
    from capport.core.place import parse_port

    return _read(parse_port, text)


def _free_or_port(text: str) -> int:
    return 0 if text == "0" else _port(text)


def _count(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not text.isascii() or not 1 <= int(text) <= most:
            raise ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")
        return int(text)

    return read
