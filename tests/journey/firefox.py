"""A real Firefox, driven by Marionette, the protocol that it brings with it."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from conftest import SOON
from lab.namespaces import Namespace, end, wait_for

# As it is shipped, except for settings that would ask the Internet for something else.
PREFERENCES = {
    "network.captive-portal-service.enabled": True,
    "network.captive-portal-service.minInterval": 1000,
    "remote.prefs.recommended": False,  # they turn the captive portal service off
    "marionette.port": 0,
    "app.update.disabledForTesting": True,
    "app.normandy.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.safebrowsing.provider.google4.updateURL": "",
    "browser.startup.page": 0,
    "browser.aboutwelcome.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "services.settings.server": "data:,",
}


class Firefox:
    """Scripts run in the browser's own context, where its services are."""

    UNKNOWN, NOT_CAPTIVE, UNLOCKED, LOCKED = range(4)
    """nsICaptivePortalService's states."""

    def __init__(self, talk: socket.socket) -> None:
        self._talk, self._file, self._numbers = talk, talk.makefile("rb"), count(1)
        self._receive()  # what it is
        self.send(
            "WebDriver:NewSession", capabilities={"alwaysMatch": {"acceptInsecureCerts": True}}
        )
        self.send("Marionette:SetContext", value="chrome")

    def run(self, script: str) -> Any:
        """Runs the body of a function and returns its result."""
        return self.send("WebDriver:ExecuteScript", script=script, args=[])["value"]

    def run_in_page(self, start: str, script: str) -> Any:
        """The same in the tab with a URL that begins with `start`."""
        self.send("Marionette:SetContext", value="content")
        try:
            for handle in self.send("WebDriver:GetWindowHandles"):
                self.send("WebDriver:SwitchToWindow", handle=handle, focus=False)
                if self.send("WebDriver:GetCurrentURL")["value"].startswith(start):
                    return self.run(script)
        finally:
            self.send("Marionette:SetContext", value="chrome")
        raise AssertionError(f"no tab with {start}: {self.urls}")

    def trust(self, host: str, certificate: Path) -> None:
        """Accepts `certificate` (PEM) for `host`, as a person can do for good."""
        base64 = "".join(certificate.read_text().splitlines()[1:-1])
        found = "Cc['@mozilla.org/security/x509certdb;1'].getService(Ci.nsIX509CertDB)"
        to = "Cc['@mozilla.org/security/certoverride;1'].getService(Ci.nsICertOverrideService)"
        shown = f"{found}.constructX509FromBase64('{base64}')"
        self.run(f"{to}.rememberValidityOverride('{host}', 443, {{}}, {shown}, true)")

    @property
    def urls(self) -> list[str]:
        """The URL of each tab."""
        found: list[str] = self.run(
            "return gBrowser.tabs.map(t => t.linkedBrowser.currentURI.spec)"
        )
        return found

    @property
    def state(self) -> int:
        """The state of its captive portal service."""
        service = "Cc['@mozilla.org/network/captive-portal-service;1']"
        found = self.run(f"return {service}.getService(Ci.nsICaptivePortalService).state")
        assert isinstance(found, int)
        return found

    def send(self, name: str, **parameters: Any) -> Any:
        asked = json.dumps([0, next(self._numbers), name, parameters]).encode()
        self._talk.sendall(b"%d:%s" % (len(asked), asked))
        _, _, error, result = self._receive()
        assert error is None, error
        return result

    def _receive(self) -> Any:
        length = b""
        while not length.endswith(b":"):
            one = self._file.read(1)
            assert one, "Firefox has gone"
            length += one
        return json.loads(self._file.read(int(length[:-1])))


@contextmanager
def firefox(profile: Path, within: Namespace) -> Iterator[Firefox]:
    """A Firefox with a fresh profile in `profile`, in a namespace."""
    lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))
    environment = {"HOME": str(profile), "PATH": "/usr/bin:/bin", "MOZ_HEADLESS": "1"}
    with (profile / "firefox.log").open("wb") as log:
        process = within.start(
            *("firefox-esr", "--headless", "--marionette", "--remote-allow-system-access"),
            *("--no-remote", "--profile", str(profile)),
            log=log,
            env=environment,
        )
    try:
        port = profile / "MarionetteActivePort"
        wait_for(lambda: port.exists() and port.read_text(), SOON, "Firefox does not start")
        talk = within.call(socket.create_connection, ("127.0.0.1", int(port.read_text())))
        talk.settimeout(SOON)
        with talk:
            yield Firefox(talk)
    finally:
        end(process)
