"""A script for mitmproxy: prints what to try, as `scripts/run` does once the portal listens."""

from mitmproxy import ctx
from mitmproxy.proxy.mode_specs import RegularMode

from capport.core.client import parse_address
from capport.core.place import Place

TOUR = """\
The portal is at http://{at}, and knows no client yet. Ctrl-C ends it. Try:
  curl -i -x http://{at} http://example.org/   for a 511, and in it the link to the login server
  a browser with that proxy: sign in where the link leads, and the next page comes through"""


def running() -> None:
    for server in ctx.master.addons.get("proxyserver").servers:  # type: ignore[no-untyped-call]
        if isinstance(server.mode, RegularMode):
            host, port, *_ = server.listen_addrs[0]
            print(TOUR.format(at=Place(parse_address(host), port)), flush=True)
