"""mitmproxy's own folder: one for every mitmproxy that a test process starts."""

import tempfile
from functools import cache
from pathlib import Path

from mitmproxy import certs
from mitmproxy.options import CONF_BASENAME, KEY_SIZE


def confdir() -> str:
    """A folder that has a CA: making its key takes longer than a quick test."""
    return _folder().name


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    certs.CertStore.create_store(Path(folder.name), CONF_BASENAME, KEY_SIZE)
    return folder
