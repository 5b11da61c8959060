"""Which program a User-Agent names, whether it is a browser, and what it retries by default."""

import re
from dataclasses import dataclass

# What a program does with a 5xx unless it is configured otherwise, by its own source or manual.
_RETRIES = {
    "axios": "axios-retry retries any 5xx three times, and by default without waiting",
    "go-http-client": "go-retryablehttp retries any 5xx but 501 four times, after 1 s to 30 s",
    "npm": "npm retries any 5xx twice, after 10 s and more (fetch-retries)",
    "debian apt-http": "apt retries as often as Acquire::Retries says",
    "python-requests": "requests does not retry; urllib3's Retry does what status_forcelist says",
    "python-urllib3": "urllib3's Retry retries a 511 if it is in status_forcelist",
    "python-httpx": "httpx does not retry a status; something in the app does",
    "python": "aiohttp does not retry a status; something in the app does",
    "okhttp": "OkHttp does not retry a 511; something in the app does",
    "curl": "curl --retry does not retry a 511; --retry-all-errors does",
    "wget": "wget retries what --retry-on-http-error lists",
    "got": "got does not retry a 511; its retry.statusCodes say what it does",
    "node": "Node's fetch does not retry; something in the app does",
    "undici": "undici retries the statusCodes of its RetryAgent; 511 is none of them by default",
    "polly": "Polly's HTTP policies retry any 5xx",
}
_PRODUCT = re.compile(r"(Debian APT-HTTP|[^\s/(;,]+)(?:/(\S+))?")
_BROWSER = re.compile(
    r"(Firefox|Edg|OPR|Chrome|Chromium|HeadlessChrome|Version(?=/\S{1,50} .{0,200}Safari))/(\S+)"
)
_SAYS_MOZILLA = re.compile(
    r"compatible;|bot\b|spider|CaptiveNetworkSupport|Thunderbird|PowerShell",
    re.IGNORECASE,
)
_NAMES = {"Edg": "Edge", "OPR": "Opera", "HeadlessChrome": "Chrome", "Version": "Safari"}


@dataclass(frozen=True, slots=True)
class Agent:
    """A program, as it names itself. `name` is empty if it does not."""

    name: str = ""
    version: str = ""
    browser: bool = False

    @property
    def retries(self) -> str:
        """What it retries by default; empty if that is not known."""
        return _RETRIES.get(self.name.lower(), "")

    def __str__(self) -> str:
        return f"{self.name}/{self.version}" if self.version else self.name or "the client"


UNNAMED = Agent()


def agent_of(text: str) -> Agent:
    """The program that a User-Agent names. It is a claim, so no verdict depends on it."""
    if text.startswith("Mozilla/") and not _SAYS_MOZILLA.search(text):
        found = _BROWSER.search(text)
        if found:
            return Agent(_NAMES.get(found[1], found[1]), found[2], browser=True)
        return Agent("a browser", browser=True)
    product = _PRODUCT.match(text.strip())
    return Agent(product[1], product[2] or "") if product else UNNAMED
