"""Real clients, and the findings that the report must have."""

CANARY = "s3cret"


PYTHON = """
import json, ssl, sys, urllib.request
def get(url, **fields):
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers=fields), timeout=20).read()
    except OSError:
        pass
"""


# Each pause is twice the time since the request before, however slow the machine is.
PATIENT = """
import time
before, pause = time.monotonic(), 0.02
for _ in range(4):
    get(sys.argv[1])
    time.sleep(pause)
    now = time.monotonic()
    before, pause = now, 2 * (now - before)
get(sys.argv[1])
"""


# What a client does before it is granted a session, what it does afterwards, and what is found.
CLIENTS = {
    "curl once, and again when it is known": ("curl -sf $URL", "curl -sf $URL", set[str]()),
    "curl three times without waiting": (
        "for n in 1 2 3; do curl -sf $URL; done",
        "curl -sf $URL",
        {"retries-511"},
    ),
    "curl that checks certificates": ("curl -sf https://x.test/", "curl -sf $URL", set()),
    "curl that does not": (
        "curl -sfk https://x.test/",
        "curl -sf $URL",
        {"accepts-any-certificate"},
    ),
    "curl that goes on in plain HTTP": (
        "curl -sf https://x.test/ || curl -sf http://x.test/",
        "curl -sf $URL",
        {"plain-http-after-tls"},
    ),
    "curl with a password": (
        f"curl -sf -u me:{CANARY} -b id={CANARY} -e http://a:{CANARY}@b/?{CANARY} $URL?t={CANARY}",
        "curl -sf $URL",
        {"authorization-to-portal", "cookies-to-portal"},
    ),
    "curl with a password in the URL": (
        f"curl -sf http://me:{CANARY}@x.test/",
        "curl -sf $URL",
        {"authorization-to-portal"},
    ),
    "Python's urllib, which sends the password in the target and in Host": (
        f"python3 -c '{PYTHON}\nget(sys.argv[1])' http://me:{CANARY}@x.test/",
        "curl -sf $URL",
        {"authorization-to-portal"},
    ),
    "curl that obeys a 429": ("curl -sf $URL; curl -sf $URL", "curl -sf $URL", set()),
    "curl that asks again after a 429": (
        "for n in a b c; do curl -sf $URL$n; done",
        "curl -sf $URL",
        {"ignores-retry-after"},
    ),
    "wget, which sends what curl does not": (
        f"wget -q -O - --header 'Authorization: Bearer {CANARY}' $URL; wget -q -O - $URL",
        "wget -q -O - $URL",
        {"authorization-to-portal"},
    ),
    "Python's urllib that retries with more and more patience": (
        f"python3 -c '{PYTHON}{PATIENT}' \"$URL\"",
        "curl -sf $URL",
        {"retries-511"},
    ),
}
