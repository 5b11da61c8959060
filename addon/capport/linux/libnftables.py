"""Runs nftables commands through libnftables.so.1 (libnftables(3)), without a shell."""

import ctypes
import json
import threading
import time
from pathlib import Path
from typing import Any

from capport.linux import netlink

LIBRARY = "libnftables.so.1"

# NFT_CTX_OUTPUT_HANDLE, _JSON and _TERSE in nftables/libnftables.h.
_HANDLE = 1 << 3
_JSON = 1 << 4
_TERSE = 1 << 11

_INTERRUPTED = b"Interrupted system call"
_ATTEMPTS = 100
_PAUSE = 0.002  # seconds

_QUOTED = 200  # characters of a failed command in an error: a command may have 500 elements

_CAP_NET_ADMIN = 12  # linux/capability.h

# The library is not made for threads, not even with a context for each. In 1.0.6 all contexts share
# the number of the next set of a transaction, the generation of the tables (by which a listing
# notices that they have changed), the list of interfaces, and the answers of functions such as
# getprotobynumber(3). Without this lock, 40 of 18 634 listings had a wrong protocol in a rule, and
# listing a set while rules were loaded ended in a segmentation fault, once in some minutes.
ONE_AT_A_TIME = threading.Lock()


class RulesError(OSError):
    """The error that nftables gave for commands. None of the commands was carried out.

    `missing` is True if every error is that a table, set or element does not exist. (If one of the
    commands finds a set full, nftables may report a missing element too; then it is False.)
    """

    def __init__(self, said: str) -> None:
        lines = [line for line in said.splitlines() if line.strip()]
        super().__init__(
            "; ".join(line[:_QUOTED] for line in lines[:2]) or "nftables gave no reason"
        )
        errors = [line for line in lines if "Error: " in line]
        self.missing = bool(errors) and all("No such file or directory" in e for e in errors)


class Nftables:
    """One context of the library, in the network namespace in which it is made.

    Any thread may use it. Only one context works at a time; `listing_of` does without the library.

    Raises OSError if the library is not installed, or without CAP_NET_ADMIN, which even listing
    rules needs. (Without this check, the library would write to stderr at each command.)
    """

    def __init__(self) -> None:
        if not _has_net_admin():
            raise OSError("nftables needs root, or CAP_NET_ADMIN")
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise OSError(f"{LIBRARY}: {error}; Debian has it in libnftables1") from None
        library.nft_ctx_new.restype = ctypes.c_void_p
        for buffer in (library.nft_ctx_get_output_buffer, library.nft_ctx_get_error_buffer):
            buffer.restype = ctypes.c_char_p
        self._library = library
        with ONE_AT_A_TIME:
            self._context = ctypes.c_void_p(library.nft_ctx_new(0))
        if not self._context:
            raise OSError("libnftables gave no context: no memory, or no netlink")
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)
        self._kernel, self._asking = netlink.connect(netlink.NETFILTER), threading.Lock()

    def run(self, commands: str) -> str:
        """Runs all of `commands` in one transaction, or none of them. Raises RulesError."""
        return self._run(commands, 0)

    # These return nothing if what they should list does not exist.

    def listing(self, command: str, flags: int = 0) -> str:
        """Returns what `command` lists. Raises RulesError."""
        try:
            return self._run(command, flags)
        except RulesError as error:
            if not error.missing:
                raise
            return ""

    def outline(self, command: str) -> str:
        """Returns what `command` lists, without the elements of sets. Raises RulesError."""
        return self.listing(command, _TERSE)

    def numbered(self, command: str) -> list[str]:
        """Returns the lines that `command` lists, each with its handle. Raises RulesError."""
        return self.listing(command, _HANDLE).splitlines()

    def ask(self, command: str) -> list[dict[str, Any]]:
        """Returns what `command` lists, in the form of libnftables-json(5). Raises RulesError."""
        answer = self.listing(command, _JSON)
        found: list[dict[str, Any]] = json.loads(answer)["nftables"] if answer else []
        return found

    def listing_of(self, kind: int, body: bytes) -> list[netlink.Message]:
        """What the kernel itself answers; nothing if what is asked for is not there.

        It neither uses the library nor waits for it. Raises OSError.
        """
        with self._asking:
            try:
                return netlink.listing(self._kernel, kind, body)
            except FileNotFoundError:
                return []

    def close(self) -> None:
        """Frees the context."""
        self._kernel.close()
        with ONE_AT_A_TIME:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = ctypes.c_void_p()

    def _run(self, commands: str, flags: int) -> str:
        # The kernel stops a listing if another process changes the rules meanwhile, and the library
        # makes listings before each transaction. Nothing has been changed then: try again.
        for _ in range(_ATTEMPTS):
            with ONE_AT_A_TIME:
                if not self._context:
                    raise ValueError("nftables is closed")
                self._library.nft_ctx_output_set_flags(self._context, flags)
                failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
                output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
                said: bytes = self._library.nft_ctx_get_error_buffer(self._context)
            if not failed:
                return output.decode(errors="replace")
            if _INTERRUPTED not in said:
                break
            time.sleep(_PAUSE)
        raise RulesError(said.decode(errors="replace"))


def _has_net_admin() -> bool:
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_NET_ADMIN & 1)
