"""The pytest plugin: its fixtures, in runs of pytest that are not this one, and the examples."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import requires
from capport.testing.kinds import KINDS

EXAMPLES = Path(__file__).with_name("examples")
PAGE = Path(__file__).resolve().parents[2] / "addon" / "capport" / "testing" / "README.md"


def run_pytest(folder: Path, *arguments: str) -> str:
    """The output of a pytest that knows capport only as an installed package."""
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    return done.stdout + done.stderr


@requires.tool("node")
def test_the_examples_of_the_page_pass(tmp_path: Path) -> None:
    names = sorted(p.name for p in EXAMPLES.glob("with_*.py") if p.stem != "with_a_phone")
    assert len(names) == 6
    for path in EXAMPLES.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    printed = run_pytest(tmp_path, "-q", *names, "-p", "no:asyncio")
    assert " passed" in printed, printed
    assert "failed" not in printed, printed
    assert "skipped" not in printed, printed


def test_the_page_shows_the_examples_as_they_are() -> None:
    page = PAGE.read_text()
    for path in EXAMPLES.glob("with_*.py"):
        link = f"tests/testing/examples/{path.name})"
        assert link in page, path
    shown = page.partition("```python\n")[2].partition("```")[0]
    assert shown.strip() in (EXAMPLES / "with_requests.py").read_text()


FAILING = """
    import urllib.request, urllib.error, pytest

    @pytest.mark.parametrize("portal_kind", ["page"])
    def test_it_is_meant_to_fail(portal):
        proxy = urllib.request.ProxyHandler(portal.proxies)
        opener = urllib.request.build_opener(proxy)
        with opener.open(portal.url_for("/data")) as answer:
            again = urllib.request.Request(
                portal.url_for("/data"), headers={"If-None-Match": answer.headers["ETag"]}
            )
        opener.open(again).close()
        assert not portal.report.errors()

    @pytest.mark.parametrize("portal_kind", ["silent", "dns-lie"])
    def test_it_is_skipped_with_the_reason(portal):
        raise AssertionError

    def test_another_test_finds_the_same_port_and_an_empty_report(portal, make_portal):
        assert portal is make_portal
        assert not portal.report.requests
"""


def test_a_test_that_fails_prints_what_a_person_needs(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text(textwrap.dedent(FAILING))
    printed = run_pytest(tmp_path, "-rs")
    assert "1 failed, 1 passed, 2 skipped" in printed
    section = printed.partition("- Captive portal -")[2]
    assert "= <Report: 2 requests, 0 handshakes, " in printed
    assert "= <Portal page>.report" in printed
    assert "kind: page" in section
    assert section.count("GET http://origin.test/data: 200\n") >= 2
    assert "takes-page-for-origin" in section
    assert "change: " in section
    assert "in a network of its own" in printed


def test_workers_of_xdist_have_a_portal_each(tmp_path: Path) -> None:
    test = """
        import pytest, urllib.request, urllib.error

        @pytest.mark.parametrize("number", range(6))
        def test_it(portal, number, worker_id, tmp_path_factory):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler(portal.proxies))
            with pytest.raises(urllib.error.HTTPError):
                opener.open(portal.url_for("/"))
            portal.grant()
            opener.open(portal.url_for("/")).close()
            (tmp_path_factory.getbasetemp().parent / worker_id).write_text(str(portal.port))
    """
    (tmp_path / "test_app.py").write_text(textwrap.dedent(test))
    base = tmp_path / "base"
    printed = run_pytest(tmp_path, "-q", "-n", "2", "--basetemp", str(base))
    assert "6 passed" in printed, printed
    ports = {path.read_text() for path in base.iterdir() if path.is_file()}
    assert len(ports) == len([path for path in base.iterdir() if path.is_file()])


def test_a_run_that_does_not_use_it_imports_next_to_nothing(tmp_path: Path) -> None:
    test = """
        import sys

        def test_it():
            ours = {name for name in sys.modules if name.startswith("capport")}
            assert ours == {"capport", "capport.testing", "capport.testing.plugin"}
            assert "mitmproxy" not in sys.modules
    """
    (tmp_path / "test_app.py").write_text(textwrap.dedent(test))
    assert "1 passed" in run_pytest(tmp_path, "-q")


def test_the_process_of_a_portal_imports_none_of_the_addons_that_it_does_not_need() -> None:
    script = """
        import sys
        from capport.proxy.internals.single_addons import import_singly

        import_singly()
        import capport.testing.proxy_process
        print(*(name for name in sys.modules if name.startswith("mitmproxy.addons.")))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    imported = done.stdout.split()
    assert "mitmproxy.addons.tlsconfig" in imported
    assert len(imported) < 15  # of some forty, whose import takes half a second


def test_the_kinds_are_those_of_the_interface() -> None:
    kinds = "511, redirect, page, script, forged-tls, silent, dns-lie, reset"
    assert ", ".join(KINDS) == kinds
    assert [name for name, kind in KINDS.items() if kind.needs] == ["silent", "dns-lie"]
