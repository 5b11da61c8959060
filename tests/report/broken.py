"""For each rule of the report: what a client that breaks it does."""

from report.recorded import BROWSER, Event, event, granted, passed, refused, shake, watched

UNWATCHED = event(0, "refused", status=511, host="api.example.org", method="GET")


HTTP_DATE = "Thu, 31 Jan 2030 12:00:00 GMT"


GO = "Go-http-client/1.1"


# The rule; the events; what the sentence of the finding says.
BROKEN: list[tuple[str, list[Event], str]] = [
    ("retries-511", [refused(n / 100) for n in range(4)], "axios-retry retries any 5xx"),
    ("retries-511", [refused(n / 10, agent="Polly/8") for n in range(3)], "Polly/8 sent GET"),
    ("retries-511", [refused(n / 9, method="CONNECT", path=None) for n in range(3)], "3 times"),
    ("retries-511", [refused(2**n, agent=GO) for n in range(5)], "go-retryablehttp retries any"),
    ("retries-handshake", [watched(), *(shake(n / 9, "refused") for n in range(6))], "6 TLS"),
    ("no-back-off", [refused(n * 5) for n in range(6)], "every 5.0 s"),
    ("no-back-off", [refused(n / 100) for n in range(4)], "every 10 ms, and did not slow down"),
    (
        "never-recovers",
        [watched(), refused(1), granted(2), event(60, "unwatched")],
        "reached no origin, and did not try",
    ),
    (
        "never-recovers",
        [watched(), shake(1, "refused"), granted(2), shake(9, "refused"), event(60, "expired")],
        "reached no origin",
    ),
    (
        "never-recovers",
        [watched(), refused(1), granted(2), *(refused(n) for n in range(3, 30))],
        "reached no origin",
    ),
    (
        "takes-page-for-origin",
        [refused(0, status=200), passed(5, traces="validator")],
        "the validator of the portal's page",
    ),
    (
        "takes-page-for-origin",  # npm keeps what it got in an earlier run
        [refused(0, traces="validator")],
        "the validator of the portal's page",
    ),
    (
        "takes-page-for-origin",
        [refused(0, status=200), passed(5, "/other", traces="cookie")],
        "a cookie that the portal set",
    ),
    (
        "takes-page-for-origin",
        [refused(0, status=200), refused(0.1, "/capport-portal/a.js", traces="url")],
        "a path that only the portal's page has",
    ),
    (
        "takes-page-for-origin",
        [refused(0, "/file", status=200, length=512), passed(9, "/file", range=512)],
        "as the rest of a file that begins with the portal's page",
    ),
    (
        "takes-page-for-origin",
        [refused(0, "/page"), refused(1, "/logo.png", referer="http://api.example.org/page")],
        "the portal's page as its Referer",
    ),
    (
        "favicon-of-portal",
        [refused(0, "/", agent=BROWSER), refused(0.2, "/favicon.ico", agent=BROWSER)],
        "Firefox/128.0 asked api.example.org for its icon",
    ),
    ("caches-511", [refused(0, etag=True), passed(60, traces="validator")], "stored the 511"),
    ("caches-511", [refused(0), passed(60, modified_since=HTTP_DATE)], "asked whether it has"),
    ("cookies-to-portal", [event(0, "refused", host="a.test", cookies=3)], "3 cookies for a.test"),
    (
        "cookies-to-portal",
        [refused(0, cookies=1, scheme="https", port=443)],
        "inside TLS with a certificate that is not the origin's",
    ),
    ("authorization-to-portal", [refused(0, authorizations=1)], "1 HTTP credential for api"),
    ("accepts-any-certificate", [shake(0, "accepted")], "of an unknown CA for api.example.org"),
    (
        "pins-certificate",
        [shake(0, "rejected", alert="unknown_ca", trusts_ca=True)],
        "though the device trusts its CA",
    ),
    (
        "plain-http-after-tls",
        [shake(0, "rejected", alert="unknown_ca"), refused(1)],
        "rejected a certificate for api.example.org, then sent GET",
    ),
    (
        "plain-http-after-tls",
        [shake(0, "refused"), refused(1, agent="curl/8.9")],
        "curl/8.9 got no TLS connection to api.example.org",
    ),
    (
        "ignores-retry-after",
        [refused(0, status=429, retry_after="30"), refused(1, "/other")],
        "asked to wait for 30 s, and sent its next request to api.example.org after 1.0 s",
    ),
    (
        "ignores-retry-after",
        [refused(-60, status=429, retry_after=HTTP_DATE), refused(-50)],
        "after 10 s",
    ),
    (
        "follows-redirect",
        [
            refused(0, status=302, agent="curl/8.9"),
            passed(0.1, "/", host="login.test", agent="curl/8.9", answered_by="login server"),
        ],
        "curl/8.9 asked for http://api.example.org/v1/items and got the login page",
    ),
]
