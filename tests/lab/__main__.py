"""`scripts/lab`: a shell, or one command, in a client of the lab; then all of it is gone again."""

import argparse
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

from lab.network import CAPTIVE_PORTAL, LOGIN_NAMES, WITH_TLS, Lab, missing


def main() -> int:
    """The status of what ran in the client; 1 if the lab did not come up, 2 for usage."""
    arguments = _parser().parse_args()
    if (reason := missing()) is not None:
        print(f"scripts/lab: {reason}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    policy = arguments.policy or WITH_TLS
    try:
        with Lab(clients=arguments.clients, policy=policy, names=LOGIN_NAMES) as lab:
            # From here on Ctrl-C is for what runs in the client; only its end is the lab's.
            signal.signal(signal.SIGINT, lambda *_: None)
            if arguments.run is not None:
                return lab.client.shell(arguments.run)
            print(_welcome(lab))
            return _shell(lab)
    except (OSError, ValueError) as error:
        print(f"scripts/lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/lab", description=__doc__)
    parser.add_argument(
        "--run", metavar="CMD", help="run CMD in the first client; its status is ours"
    )
    parser.add_argument("--clients", type=int, choices=range(1, 10), default=1, metavar="N")
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="instead of the lab's own policy"
    )
    return parser


def _leave(number: int, frame: types.FrameType | None) -> None:
    sys.exit(128 + number)


def _shell(lab: Lab) -> int:
    shell = {**lab.client.environment, "PS1": "client1# "}
    argv = lab.client.namespace.argv("bash", "--norc", "-i")
    return subprocess.run(argv, env=shell, check=False).returncode


def _welcome(lab: Lab) -> str:
    others = "".join(
        f"\n  ip netns exec {client.namespace.name} env CURL_CA_BUNDLE={lab.trusted} bash"
        for client in lab.clients[1:]
    )
    server = lab.policy.login_server
    asks_api = f"\n  curl {CAPTIVE_PORTAL} -H 'Accept: application/captive+json'"
    garden = "\n  curl http://www.example.org/           the walled garden"
    return f"""\
You are an unknown client, {lab.client.v4} and {lab.client.v6}, {lab.client.mac}.
DHCP and the router's advertisements named the portal's API.
Every name but login.example.net is the origin's, 198.51.100.2. Try:\
{asks_api if server and server.certificate else ""}
  curl -i http://www.example.com/        511
  curl -k https://www.example.com/       the TLS alert\
{garden if lab.policy.walled_garden.find("www.example.org", 80) else ""}
On the router, in another terminal:
  ip netns exec {lab.router.name} {Path(sys.executable).parent}/capport grant {lab.client.mac} \
--policy {lab.policy_file}
  ip netns exec {lab.router.name} nft list table inet capport
What the portal says: {lab.folder}/mitmdump-8080.log
Its events: {lab.folder}/events.jsonl{others and chr(10) + "Other clients:" + others}
Ctrl-D ends the shell and the lab."""


if __name__ == "__main__":
    os.environ.setdefault("TERM", "dumb")
    sys.exit(main())
