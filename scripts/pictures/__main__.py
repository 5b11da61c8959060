"""`scripts/pictures/take`: a 511 as a browser shows it, the portal's flows in mitmweb, a report.

Needs Debian's chromium and fonts-noto-color-emoji.
"""

import asyncio
import base64
import os
import sys
import tempfile
from pathlib import Path

from lab.namespaces import Namespace, namespaces, veth, wait_for
from login.chromium import Tab, chromium

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
BIN = Path(sys.executable).parent
PROXY = "127.0.0.1:8080"
KNOWN = "127.0.0.2"

POLICY = """\
network: Café Wi-Fi
login_server: {listen: 127.0.0.1:8511}
walled_garden: [menu.example.com]
tls: {unknown: intercept, connect: alert}
"""
NAMES = "198.51.100.2 www.example.com menu.example.com api.example.net www.example.org\n"


def curl(of: Namespace, *arguments: str, client: str = "127.0.0.1") -> None:
    of.run("curl", "-sk", "-o/dev/null", "-x", PROXY, "--interface", client, *arguments, check=True)


def visits(of: Namespace) -> None:
    """One of each: refused, to the garden, intercepted, known."""
    curl(of, "http://www.example.com/news")
    curl(of, "http://menu.example.com/")
    curl(of, "http://connectivitycheck.gstatic.com/generate_204")
    curl(of, "-H", "Accept: application/json", "https://api.example.net/v1/orders", "--json", "{}")
    curl(of, "http://www.example.org/", client=KNOWN)


def retries(of: Namespace) -> None:
    """What axios-retry sends, with a token that it should keep to itself."""
    agent, token = ("-A", "axios/1.7.9"), ("-H", "Authorization: Bearer x")
    for _ in range(4):
        curl(of, *agent, *token, "http://api.example.net/v1/orders")


async def picture(tab: Tab, width: int, height: int, name: str) -> None:
    await tab.send(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=1,
        mobile=False,
    )
    await asyncio.sleep(1)  # the page is laid out again
    taken = await tab.send("Page.captureScreenshot", format="png")
    (HERE / name).write_bytes(base64.b64decode(taken["data"]))
    print(f"scripts/pictures/{name}: {(HERE / name).stat().st_size} bytes")


async def take(portal: Namespace, folder: Path) -> None:
    within = portal.argv()
    visits(portal)
    async with chromium(folder / "operator", within=within) as tab:
        await tab.open("http://127.0.0.1:8081/?token=pictures")
        await tab.shows("api.example.net")
        await tab.run(click("tr", "orders"))
        await tab.run(click("nav a", "Comment"))
        await picture(tab, 1100, 400, "mitmweb.png")
    proxy = f"--proxy-server=http://{PROXY}"
    async with chromium(folder / "guest", within=within, arguments=[proxy]) as tab:
        await tab.open("http://www.example.com/news")
        await tab.shows("Sign in")
        await picture(tab, 640, 480, "511.png")
    retries(portal)
    page = folder / "report.html"
    report = (str(BIN / "capport"), "report", "--flows", str(folder / "flows"))
    portal.run(*report, "--html", str(page), check=True)
    async with chromium(folder / "reader", within=within) as tab:
        await tab.open(page.as_uri())
        await picture(tab, 900, 700, "report.png")


def click(selector: str, text: str) -> str:
    """JavaScript that clicks the first such element that shows `text`."""
    return (
        f"[...document.querySelectorAll('{selector}')]"
        f".find(e => e.innerText.includes('{text}')).click()"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as made, namespaces("portal", "origin") as (portal, origin):
        folder = Path(made)
        (folder / "policy.yaml").write_text(POLICY)
        hosts = Path("/etc/netns") / portal.name / "hosts"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(NAMES)
        veth(portal, "wan", origin, "eth0")
        portal.ip("addr add 198.51.100.1/24 dev wan", "link set wan up")
        origin.ip("addr add 198.51.100.2/24 dev eth0", "link set eth0 up")
        site = folder / "site"
        site.mkdir()
        origin.start(sys.executable, "-m", "http.server", "80", "--directory", str(site))
        with (folder / "log").open("w+b") as log:
            portal.start(
                *(str(BIN / "mitmweb"), "-s", str(CHECKOUT / "addon" / "captive_portal.py")),
                *("--set", f"portal_policy={folder / 'policy.yaml'}", "--no-web-open-browser"),
                *("--set", "web_password=pictures", "--listen-host", "127.0.0.1"),
                *("-w", str(folder / "flows")),
                log=log,
                env={**os.environ, "HOME": made, "XDG_STATE_HOME": made},
            )
            wait_for(lambda: "The login server answers" in (folder / "log").read_text())
        store = folder / "capport" / "sessions.db"
        portal.run(str(BIN / "capport"), "grant", KNOWN, "--sessions", str(store), check=True)
        asyncio.run(take(portal, folder))


if __name__ == "__main__":
    main()
