"""Two people edit one file on a WebDAV server, one with cadaver, the other one with curl.

RFC 6585 section 3: one's PUT undoes what the other one has changed meanwhile (the "lost update"),
unless the request has to be conditional. The server is a real one, and so are the clients.
"""

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import requires
from conftest import SOON, Portal, StartPortal
from ports import free_port
from proxy.wire import GARDEN, with_names

pytestmark = requires.tool("lighttpd", "cadaver", "curl")

KNOWN = "clients:\n  - {address: 127.0.0.1, access: known}\n"
CONDITIONS = f"{KNOWN}limits:\n  require_conditions: [{GARDEN}]\n"
SERVER = """
server.document-root = "{folder}/served"
server.upload-dirs = ("{folder}")
server.bind = "127.0.0.1"
server.port = {port}
server.modules = ("mod_webdav")
server.errorlog = "/dev/stderr"
mimetype.assign = (".txt" => "text/plain")
webdav.activate = "enable"
webdav.sqlite-db-name = "{folder}/locks.db"
"""
# cadaver looks at the time of a file, in seconds, to see whether it was edited.
EDITOR = '#!/bin/sh\necho "with cadaver" >> "$1"\ntouch -d "1 minute" "$1"\n'


@dataclass(frozen=True, slots=True)
class Shared:
    """A folder on a WebDAV server, and two people who have it open through the portal."""

    folder: Path
    origin: int
    proxy: int

    @property
    def page(self) -> str:
        """The page on the server now, without the updates that were lost."""
        return (self.folder / "served" / "page.txt").read_text()

    def url(self, name: str) -> str:
        return f"http://{GARDEN}:{self.origin}/{name}"

    async def curl(self, *arguments: str, name: str = "page.txt") -> tuple[int, str]:
        """The status and the whole answer."""
        options = ("-sS", "-i", "-x", f"http://127.0.0.1:{self.proxy}", "-H", "Expect:")
        said = await self._run("curl", *options, *arguments, self.url(name))
        return int(said.split(" ", 2)[1]), said

    async def edit(self, line: str) -> str:
        """Makes curl's file a change of the page as it is now, and returns the page's ETag."""
        _, said = await self.curl()
        head, _, page = said.partition("\n\n")
        (self.folder / "curl.txt").write_text(f"{page}{line}\n")
        found = re.search(r"(?im)^etag: (.*)$", head)
        assert found, head
        return found[1]

    async def put(self, *fields: str, name: str = "page.txt") -> int:
        """The status of curl's PUT of its file."""
        options = [part for field in fields for part in ("-H", field)]
        status, said = await self.curl("-T", str(self.folder / "curl.txt"), *options, name=name)
        assert status != 428 or "send the request again with If-Match and the ETag" in said
        return status

    async def cadaver(self, *commands: str) -> str:
        """What cadaver says to these commands."""
        (self.folder / "commands").write_text("".join(f"{it}\n" for it in (*commands, "quit")))
        proxy = f"--proxy=127.0.0.1:{self.proxy}"
        script = f"exec cadaver {proxy} {self.url('')} < commands"
        return await self._run("sh", "-c", script)

    async def _run(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            env={"PATH": "/usr/sbin:/usr/bin:/bin", "HOME": str(self.folder), "EDITOR": "./editor"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), SOON)
        assert process.returncode == 0, said.decode()
        return said.decode().replace("\r\n", "\n")


@asynccontextmanager
async def shared(it: Portal, folder: Path) -> AsyncIterator[Shared]:
    """A WebDAV server with one page on it."""
    with_names(it, GARDEN)
    (folder / "served").mkdir()
    (folder / "served" / "page.txt").write_text("begun\n")
    (folder / "editor").write_text(EDITOR)
    (folder / "editor").chmod(0o700)
    port = free_port()
    (folder / "lighttpd.conf").write_text(SERVER.format(folder=folder, port=port))
    program = shutil.which("lighttpd", path="/usr/sbin:/usr/bin:/bin") or "lighttpd"
    server = await asyncio.create_subprocess_exec(
        *(program, "-D", "-f", str(folder / "lighttpd.conf")),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert server.stderr is not None
        said = await asyncio.wait_for(server.stderr.readline(), SOON)
        assert b"server started" in said, said
        yield Shared(folder, port, it.port)
    finally:
        with suppress(ProcessLookupError):
            server.terminate()
        await server.wait()


async def test_where_no_condition_is_required_an_update_is_lost(
    portal: StartPortal, tmp_path: Path
) -> None:
    """Shows that the next test can fail."""
    async with portal(KNOWN) as it, shared(it, tmp_path) as both:
        await both.edit("with curl")
        assert "Uploading changes" in await both.cadaver("edit page.txt")
        assert both.page == "begun\nwith cadaver\n"
        assert await both.put() == 204
        assert both.page == "begun\nwith curl\n"


@pytest.mark.rfc(6585, "3", "requires the request to be conditional")
async def test_where_conditions_are_required_none_is_lost(
    portal: StartPortal, tmp_path: Path
) -> None:
    """cadaver locks the page, so its PUT has the lock's token in `If`. curl has to say If-Match."""
    async with portal(CONDITIONS) as it, shared(it, tmp_path) as both:
        tag = await both.edit("with curl")
        assert "Uploading changes" in await both.cadaver("edit page.txt")
        assert await both.put() == 428
        assert await both.put(f"If-Match: {tag}") == 412
        assert both.page == "begun\nwith cadaver\n"
        tag = await both.edit("with curl")
        assert await both.put(f"If-Match: {tag}") == 204
        assert both.page == "begun\nwith cadaver\nwith curl\n"
        # Without a lock, cadaver has no condition either.
        assert "428 Precondition Required" in await both.cadaver("put curl.txt page.txt")


@pytest.mark.rfc(6585, "3", "requires the request to be conditional")
async def test_a_page_is_made_once(portal: StartPortal, tmp_path: Path) -> None:
    """RFC 9110 section 13.1.2: `If-None-Match: *` if it must not exist yet."""
    async with portal(CONDITIONS) as it, shared(it, tmp_path) as both:
        await both.edit("with curl")
        assert await both.put(name="new.txt") == 428
        assert await both.put("If-None-Match: *", name="new.txt") == 201
        assert await both.put("If-None-Match: *", name="new.txt") == 412


@pytest.mark.rfc(6585, "3", "requires the request to be conditional")
async def test_rfc4918_no_property_is_set_and_nothing_overwritten_without_a_condition(
    portal: StartPortal, tmp_path: Path
) -> None:
    """RFC 4918 sections 10.4 (If) and 10.6 (Overwrite)."""
    async with portal(CONDITIONS) as it, shared(it, tmp_path) as both:
        refused = await both.cadaver(
            "copy page.txt other.txt", "move page.txt other.txt", "propset page.txt colour blue"
        )
        assert refused.count("428 Precondition Required") == 3
        assert not (tmp_path / "served" / "other.txt").exists()
        done = await both.cadaver(
            "unset overwrite",
            "copy page.txt other.txt",
            "move other.txt page.txt",  # which is there
            "move other.txt another.txt",
            "lock page.txt",
            "propset page.txt colour blue",
            "unlock page.txt",
        )
        assert "428" not in done
        ends = re.findall(r"succeeded|failed:\n412", done)
        assert ends == ["succeeded", "failed:\n412", *["succeeded"] * 4], done
        assert both.page == "begun\n"
        assert (tmp_path / "served" / "another.txt").read_text() == "begun\n"
