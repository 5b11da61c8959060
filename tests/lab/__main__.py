"""`scripts/lab`: runs a shell, or one command, in a client of the lab, and then removes the lab."""

import argparse
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capport.testing.kinds import KINDS, OURS
from lab.fleet import Fleet
from lab.network import CAPTIVE_PORTAL, LOGIN_NAMES, WITH_TLS, Lab, missing


def main() -> int:
    """The exit status of what ran in the client; 1 if the lab did not come up, 2 for usage."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.routers > 1 and (arguments.policy or arguments.kind != OURS):
        parser.error("several routers have the lab's own policy and kind")
    needed = ("redis-server",) if arguments.routers > 1 else ()
    if (reason := missing(*needed)) is not None:
        print(f"scripts/lab: {reason}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        with _routers(arguments) as routers:
            lab = routers[0]
            # From here on Ctrl-C goes to what runs in the client; the lab ends when that ends.
            signal.signal(signal.SIGINT, lambda *_: None)
            if arguments.run is not None:
                return lab.client.shell(arguments.run)
            print(_welcome(routers))
            return _shell(lab)
    except (OSError, ValueError) as error:
        print(f"scripts/lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


@contextmanager
def _routers(arguments: argparse.Namespace) -> Iterator[list[Lab]]:
    """The lab, or a lab for each router; the first one has the clients."""
    if arguments.routers == 1:
        policy = arguments.policy or WITH_TLS
        with Lab(
            clients=arguments.clients, policy=policy, names=LOGIN_NAMES, kind=arguments.kind
        ) as lab:
            yield [lab]
    else:
        with Fleet(
            arguments.routers, clients=arguments.clients, policy=WITH_TLS, names=LOGIN_NAMES
        ) as fleet:
            yield fleet.routers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/lab", description=__doc__)
    parser.add_argument(
        "--run", metavar="CMD", help="run CMD in the first client; its status is ours"
    )
    parser.add_argument("--clients", type=int, choices=range(1, 10), default=1, metavar="N")
    parser.add_argument(
        "--routers",
        type=int,
        choices=range(1, 4),
        default=1,
        metavar="N",
        help="that share their sessions in a Redis; `roam 2` moves the client to the second",
    )
    portal = parser.add_mutually_exclusive_group()
    portal.add_argument(
        "--policy", type=Path, metavar="FILE", help="instead of the lab's own policy"
    )
    portal.add_argument(
        "--kind", choices=KINDS, default=OURS, help="another kind of portal than capport's own"
    )
    return parser


def _leave(number: int, frame: types.FrameType | None) -> None:
    sys.exit(128 + number)


def _shell(lab: Lab) -> int:
    shell = {**lab.client.environment, "PS1": "client1# "}
    argv = lab.client.namespace.argv("bash", "--norc", "-i")
    return subprocess.run(argv, env=shell, check=False).returncode


def _welcome(routers: list[Lab]) -> str:
    lab = routers[0]
    others = "".join(
        f"\n  ip netns exec {client.namespace.name} env CURL_CA_BUNDLE={lab.trusted}"
        f" PATH={lab.folder}:$PATH bash"
        for client in lab.clients[1:]
    )
    server = lab.policy.login_server
    asks_api = f"\n  curl {CAPTIVE_PORTAL} -H 'Accept: application/captive+json'"
    garden = "\n  curl http://www.example.org/           the walled garden"
    roam = "\n  roam 2                                 move to the access point of router 2"
    ours = lab.kind.name == OURS
    kind = "" if ours else f"The portal is of the kind {lab.kind.name}: {lab.kind.about}.\n"
    return f"""\
{kind}You are an unknown client, {lab.client.v4} and {lab.client.v6}, {lab.client.mac}.
DHCP and the router's advertisements named the portal's API.
Every name but login.example.net is the origin's, 198.51.100.2. Try:\
{asks_api if server and server.certificate else ""}
  curl -i http://www.example.com/        {"511" if ours else ""}
  curl -k https://www.example.com/       {"the TLS alert" if ours else ""}\
{garden if lab.policy.walled_garden.find("www.example.org", 80) else ""}\
{roam if len(routers) > 1 else ""}
{"".join(_of_router(lab, router) for router in routers)}\
{f"Other clients:{others}{chr(10)}" if others else ""}\
Ctrl-D ends the shell and the lab."""


def _of_router(lab: Lab, router: Lab) -> str:
    number = f" {router.site.number}" if router.site else ""
    return f"""\
On the router{number}, in another terminal:
  ip netns exec {router.router.name} {Path(sys.executable).parent}/capport grant {lab.client.mac} \
--policy {router.policy_file}
  ip netns exec {router.router.name} nft list table inet capport
What the portal says: {router.folder}/mitmdump-8080.log
Its events: {router.folder}/events.jsonl
"""


if __name__ == "__main__":
    os.environ.setdefault("TERM", "dumb")
    sys.exit(main())
