"""`scripts/bench [store|http|gate|router]`: all of them, or one."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, metadata

from benchmarks.figures import Figure, Missing

AREAS = {
    "gate": "deciding: look-ups, rules, verdicts and replies, in microseconds",
    "store": "the session store: look-ups among a million, grants, revocations",
    "http": "511s and known requests a second beside a bare mitmdump; a 1 GB upload",
    "router": "a known client's traffic beside plain forwarding; grants, revocations; a flood",
}


def main() -> int:
    """0, or 1 where something that was to be measured could not be."""
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
    arguments = parser.parse_args()
    print(_machine())
    without = []
    for area in [arguments.area] if arguments.area else AREAS:
        measure: Callable[[bool], Iterator[Figure]]
        measure = import_module(f"benchmarks.{area}").figures
        print(f"\n{area}: {AREAS[area]}\n{'':48}{'min':>10}{'median':>10}{'max':>10}", flush=True)
        try:
            for figure in measure(arguments.quick):
                print("\n".join(figure.lines()), flush=True)
        except Missing as reason:
            print(f"scripts/bench {area}: {reason}", file=sys.stderr)
            without.append(area)
    print(f"\nload average at the end: {_load()}; a busy machine widens the spread")
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
