"""The script mitmproxy loads: `mitmdump -s addon/captive_portal.py --set portal_policy=POLICY`.

It never changes while mitmproxy runs, and holds nothing: what stands in the traffic's way is
installed from the package, once, and stays when this file is touched, broken or deleted.
"""

import os
import sys

from mitmproxy import ctx

try:
    from capport.proxy.internals.verify import verify

    verify()
    from capport.proxy.addon import CaptivePortal
except Exception as error:
    # Asked here, because the package may be what cannot be imported.
    if ctx.master.addons.get("proxyserver").is_running:  # type: ignore[no-untyped-call]
        raise
    # mitmproxy opens its port before it loads a script. If it cannot load one, it ends, but serves
    # until then: 40 of 80 clients got a connection to the origin meanwhile.
    print(f"{__file__}: the portal cannot be loaded: {error}", file=sys.stderr, flush=True)
    os._exit(1)

addons = [CaptivePortal()]
