"""`scripts/bench [gate|store|fleet|refuse|http|router]`: all of them, or one."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path

from benchmarks import refuse
from benchmarks.figures import Figure, Missing

AREAS = {
    "gate": "deciding: look-ups, rules, verdicts and replies, in microseconds",
    "store": "the session store: look-ups among a million, grants, revocations",
    "fleet": "ten routers that share a Redis, two of them whole: how soon each acts on another",
    "refuse": "511s and TLS refusals beside mitmproxy's block_list, Squid and nginx",
    "http": "known requests a second beside a bare mitmdump; a 1 GB upload",
    "router": "a known client's traffic beside plain forwarding; grants, revocations; a flood",
}


def main() -> int:
    """0, or 1 if something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the portal, each figure beside its peer's in the same run.",
        epilog="\n".join(f"{name:<8}{about}" for name, about in AREAS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("area", nargs="?", choices=AREAS, help="one alone")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes, few rounds: whether it runs, not how fast",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw what refusals cost as an SVG (refuse)"
    )
    arguments = parser.parse_args()
    print(_machine())
    without: list[str] = []
    measured: dict[str, list[Figure]] = {}
    for area in [arguments.area] if arguments.area else AREAS:
        measure: Callable[[bool], Iterator[Figure]]
        measure = import_module(f"benchmarks.{area}").figures
        print(f"\n{area}: {AREAS[area]}\n{'':48}{'min':>10}{'median':>10}{'max':>10}", flush=True)
        try:
            for figure in measure(arguments.quick):
                print("\n".join(figure.lines()), flush=True)
                measured.setdefault(area, []).append(figure)
        except Missing as reason:
            print(f"scripts/bench {area}: {reason}", file=sys.stderr)
            without.append(area)
    print(f"\nload average at the end: {_load()}; a busy machine widens the spread")
    if arguments.json:
        written = {area: [one.as_json() for one in figures] for area, figures in measured.items()}
        arguments.json.write_text(json.dumps({"machine": _machine(), **written}, indent=1) + "\n")
    if arguments.plot and "refuse" in measured:
        arguments.plot.write_text(refuse.picture(measured["refuse"]))
    return 1 if without else 0


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()},"
        f" mitmproxy {metadata.version('mitmproxy')}; load average {_load()}"
    )


def _load() -> str:
    return " ".join(f"{load:.1f}" for load in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())
