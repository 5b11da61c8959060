"""A portal that an app's tests start and steer, and that reports what the app did."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlunsplit

from capport.core.client import parse_address
from capport.core.place import Place
from capport.testing.kinds import OURS, kind_named

if TYPE_CHECKING:
    from capport.report.summary import Report

PATIENCE = 60.0  # seconds for one command, however busy the machine is
_AGAIN = 0.05  # seconds until `wait_for` looks again
LOOPBACK = parse_address("127.0.0.1")
HOST = "origin.test"  # RFC 6761 section 6.2: no name that is real

_PROXY_VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy")
_CA_VARIABLES = (
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
    *("GIT_SSL_CAINFO", "PIP_CERT", "npm_config_cafile", "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO"),
    "DENO_CERT",
)


class PortalError(Exception):
    """The portal cannot start, or cannot carry out a command."""


class Portal:
    """A portal for tests, for the length of a `with` block, or from `start` to `close`.

    `kind` is one of the kinds of portal. `policy` is the text of a policy, without `login_url`
    unless you have a login server. `listen` is the proxy's address and port; with port 0 any free
    one. If it is `offline`, an origin of its own answers for every name, so that no test needs the
    Internet, or can reach it. `namespace` is the descriptor of a network namespace to listen in;
    what runs there ends with the portal.
    """

    def __init__(
        self,
        *,
        kind: str = OURS,
        policy: str = "",
        listen: tuple[str, int] = ("127.0.0.1", 0),
        offline: bool = True,
        namespace: int | None = None,
    ) -> None:
        """Raises ValueError if there is no such kind, or if it needs a `namespace`."""
        self._check(kind, namespace)
        self.kind = kind
        self.policy = policy
        self._listen = listen
        self._offline = offline
        self._namespace = namespace
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Portal {self.kind}>"

    def start(self) -> None:
        """Starts the portal, and returns when it serves. Raises PortalError."""
        if not hasattr(socket, "AF_NETLINK"):
            raise PortalError("the portal needs Linux: it asks the kernel who its clients are")
        self.folder = Path(tempfile.mkdtemp(prefix="capport-"))
        ours, theirs = socket.socketpair()
        passed = [theirs.fileno(), *([] if self._namespace is None else [self._namespace])]
        self._log = (self.folder / "log.txt").open("w+b")
        with theirs:
            self._process = subprocess.Popen(
                [
                    # -P: a module of the app must not replace one of Python's.
                    *(sys.executable, "-P", "-m", "capport.proxy.internals.single_addons"),
                    "capport.testing.proxy_process",
                    *(str(theirs.fileno()), str(self.folder)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=passed,
                start_new_session=True,  # Ctrl-C is for the tests; this process ends with them
            )
        ours.settimeout(PATIENCE)
        self._channel = ours.makefile("rwb")
        ours.close()
        try:
            where = self._exchange(
                kind=self.kind,
                policy=self.policy,
                listen=self._listen,
                offline=self._offline,
                namespace=self._namespace,
            )
        except PortalError:
            self.close()
            raise
        self.port: int = where["port"]
        self.login_url: str = where["login_url"]

    def close(self) -> None:
        """Ends the portal, and deletes its files."""
        if self._process is None:
            return
        with suppress(OSError):  # the process died before it read the last command
            self._channel.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- where things are ------------------------------------------------------------------------

    @property
    def proxy_url(self) -> str:
        """The proxy, as clients of this machine name it."""
        address = parse_address(self._listen[0])
        return f"http://{Place(LOOPBACK if address.is_unspecified else address, self.port)}"

    @property
    def proxies(self) -> dict[str, str]:
        """The proxy for each scheme, as requests takes it."""
        return {"http": self.proxy_url, "https": self.proxy_url}

    @property
    def ca_file(self) -> Path:
        """The CA of the origin: make the app trust it."""
        return self.folder / "origin-ca-cert.pem"

    @property
    def own_ca_file(self) -> Path:
        """The CA of the portal itself, for policies with `tls.known: inspect` or `trusts_ca`."""
        return self.folder / "mitmproxy" / "mitmproxy-ca-cert.pem"

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which most programs find the proxy and trust the origin."""
        proxy = dict.fromkeys(_PROXY_VARIABLES, self.proxy_url)
        trusting = self.trusting if self._offline else {}
        return {**proxy, "no_proxy": "", "NO_PROXY": "", **trusting}

    @property
    def trusting(self) -> dict[str, str]:
        """Variables by which most programs trust the origin."""
        return dict.fromkeys(_CA_VARIABLES, str(self.ca_file))

    def url_for(self, path: str, *, scheme: str = "http", host: str = HOST) -> str:
        """The URL of a path at the origin, which answers for every name."""
        path, _, query = path.partition("?")
        return urlunsplit((scheme, host, path, query, ""))

    # --- what a test does ------------------------------------------------------------------------

    def grant(self, *clients: str, seconds: float | None = None) -> None:
        """Makes these addresses known, for `seconds`, or for the lifetime of the policy.

        Without an address, makes this machine known, and every client that was seen.
        """
        seen = {event["client"] for event in self.events() if "client" in event}
        self._do("grant", clients=clients or sorted(seen), seconds=seconds)

    def revoke(self) -> None:
        """Makes every client unknown, and cuts what it has open."""
        self._do("revoke")

    def expire(self) -> None:
        """Ends every session as if its time were over."""
        self._do("expire")

    def serve(
        self,
        path: str,
        body: object = b"",
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        hold_after: int | None = None,
    ) -> None:
        """Makes the origin answer with `body` at `path`, until the next reset.

        `body` is bytes, text, or a value for JSON. After `hold_after` bytes of it the origin
        sends no more, so that a test can do something in the middle of the answer.
        """
        kind = "application/json"
        if isinstance(body, str | bytes):
            kind = "application/octet-stream" if isinstance(body, bytes) else "text/plain"
            data = body.encode() if isinstance(body, str) else body
        else:
            data = json.dumps(body).encode()
        self._do(
            "serve",
            path=path,
            body=data.decode("latin-1"),
            status=status,
            headers=list({"Content-Type": kind, **(headers or {})}.items()),
            hold_after=hold_after,
        )

    def reset(self, *, kind: str = OURS, policy: str = "") -> None:
        """Begins again, at the same port: nobody is known, and the report is empty."""
        self._check(kind, self._namespace)
        self._do("reset", kind=kind, policy=policy)
        self.kind, self.policy = kind, policy

    def events(self) -> list[dict[str, Any]]:
        """Every event since the start or the last reset."""
        lines = Path(self._do("events")).read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def report(self) -> "Report":
        """What clients did since the start or the last reset, and the findings."""
        from capport.report.summary import report_on

        return report_on(self.events(), until=time.time())

    def wait_for(self, condition: Callable[["Report"], object], seconds: float = 60.0) -> "Report":
        """Returns the report as soon as `condition` holds of it. Raises TimeoutError."""
        until = time.monotonic() + seconds
        while not condition(report := self.report):
            if time.monotonic() > until:
                raise TimeoutError(f"{condition} did not hold within {seconds:g} s")
            time.sleep(_AGAIN)
        return report

    @staticmethod
    def _check(kind: str, namespace: int | None) -> None:
        needs = kind_named(kind).needs
        if needs and namespace is None:
            raise ValueError(f"{kind}: {needs}")

    def _do(self, command: str, **arguments: object) -> Any:
        answer = self._exchange(do=command, **arguments)
        if "error" in answer:
            raise PortalError(answer["error"])
        return answer["result"]

    def _exchange(self, **message: object) -> dict[str, Any]:
        with self._lock:
            try:
                self._channel.write(json.dumps(message).encode() + b"\n")
                self._channel.flush()
                line = self._channel.readline()
            except (OSError, ValueError) as error:
                raise PortalError(f"the portal does not answer: {error}") from None
        if not line:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip()
            raise PortalError(said[-2000:] or "the portal has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
