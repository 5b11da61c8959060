"""What the lab's origin serves to browsers and to connectivity checks, one site for every name.

`python website.py FOLDER`: HTTP on 8180, and with cert.pem and key.pem in it HTTPS on 8543; the
origin's namespace redirects 80 and 443 there. Each request is written to FOLDER/website.jsonl.
"""

import asyncio
import json
import ssl
import sys
from http import HTTPStatus
from pathlib import Path

HTTP, HTTPS = 8180, 8543

# One pixel: an icon that a browser may keep.
ICON = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c63f8cfc0f01f00050001ff89993d1d"
    "0000000049454e44ae426082"
)

ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    # What the vendors' servers answer, to the byte where their clients compare.
    "/generate_204": (204, {}, b""),
    "/gen_204": (204, {}, b""),
    "/hotspot-detect.html": (
        *(200, {"Content-Type": "text/html"}),
        b"<HTML><HEAD><TITLE>Success</TITLE></HEAD><BODY>Success</BODY></HTML>",
    ),
    "/connecttest.txt": (200, {"Content-Type": "text/plain"}, b"Microsoft Connect Test"),
    "/canonical.html": (
        *(200, {"Content-Type": "text/html"}),
        b'<meta http-equiv="refresh" content="0;url=https://support.mozilla.org/kb/captive-portal"/>',
    ),
    "/success.txt": (200, {"Content-Type": "text/plain"}, b"success\n"),
    "/nm": (
        *(200, {"Content-Type": "text/plain", "X-NetworkManager-Status": "online"}),
        b"NetworkManager is online\n",
    ),
    # Without a body: at the first byte of one, ConnMan 1.41 loses track of its check.
    "/online/status.html": (200, {"Content-Type": "text/html", "X-ConnMan-Status": "online"}, b""),
    # A site as people visit it.
    "/news": (
        *(200, {"Content-Type": "text/html", "Cache-Control": "max-age=3600"}),
        b"<!DOCTYPE html><title>News</title><link rel=icon href=/favicon.ico>"
        b"<link rel=stylesheet href=/site.css><h1>The news</h1>",
    ),
    "/site.css": (200, {"Content-Type": "text/css", "Cache-Control": "max-age=3600"}, b"h1{top:0}"),
    "/data.json": (
        *(200, {"Content-Type": "application/json", "Cache-Control": "max-age=3600"}),
        b'{"from": "the origin"}',
    ),
    "/worker.js": (
        200,
        {"Content-Type": "text/javascript", "Cache-Control": "no-cache"},
        b"oninstall = e => e.waitUntil(caches.open('site').then(c => c.add('/data.json')));",
    ),
    "/favicon.ico": (200, {"Content-Type": "image/png"}, ICON),
}


class Site:
    """Any path, by GET or HEAD. Header fields go out in the case that they are written in here."""

    def __init__(self, log: Path) -> None:
        self._log = log
        log.touch()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers each request of a connection."""
        scheme = "https" if writer.get_extra_info("ssl_object") else "http"
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                writer.write(self._answer(head.decode("latin-1"), scheme))
                await writer.drain()
                if b"\r\nconnection: close\r\n" in head.lower():
                    break  # ConnMan reads to the end
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _answer(self, head: str, scheme: str) -> bytes:
        first, *rest = head.rstrip().split("\r\n")
        method, target, _ = first.split(" ")
        named = {name.lower(): value for name, _, value in (one.partition(": ") for one in rest)}
        path, host = target.partition("?")[0], named.get("host", "")
        asked = {"method": method, "scheme": scheme, "host": host, "path": path, "fields": named}
        with self._log.open("a") as log:
            log.write(json.dumps(asked) + "\n")
        status, fields, body = ANSWERS.get(path, (404, {"Content-Type": "text/plain"}, b"no"))
        if status != 204:
            fields = {**fields, "Content-Length": str(len(body))}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        said = "\r\n".join(lines).encode() + b"\r\n\r\n"
        return said if method == "HEAD" else said + body


async def main(folder: Path) -> None:
    """Serves until it is killed."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    await asyncio.start_server(Site(folder / "website.jsonl").serve, None, HTTPS, ssl=tls)
    await asyncio.start_server(Site(folder / "website.jsonl").serve, None, HTTP)
    (folder / "website").touch()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
