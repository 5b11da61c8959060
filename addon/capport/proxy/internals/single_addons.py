"""Lets a process import some of mitmproxy's addons without the others, which take half a second.

`python -m capport.proxy.internals.single_addons MODULE ARGUMENT...` runs a module in such a
process. It relies on this: the modules in `mitmproxy.addons` need nothing of the package but its
path.
"""

import importlib.util
import runpy
import sys


def import_singly() -> None:
    """Makes `mitmproxy.addons` an empty package. Call this before anything imports an addon."""
    spec = importlib.util.find_spec("mitmproxy.addons")
    assert spec
    sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))


if __name__ == "__main__":
    import_singly()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
