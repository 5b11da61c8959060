"""Starts the process of a portal in tests, as quickly as it can."""

import sys


def main() -> int:
    """Runs that process and returns its exit status. The order of the imports saves time."""
    from capport.proxy.internals.single_addons import import_singly

    import_singly()
    from capport.testing.proxy_process import serve

    return serve(int(sys.argv[1]), sys.argv[2])


if __name__ == "__main__":
    sys.exit(main())
