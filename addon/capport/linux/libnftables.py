"""nftables without a shell: the kernel's rules through libnftables.so.1 (libnftables(3))."""

import ctypes
import json
import threading
import time
from pathlib import Path
from typing import Any

LIBRARY = "libnftables.so.1"

# NFT_CTX_OUTPUT_HANDLE, _JSON and _TERSE in nftables/libnftables.h.
_HANDLE = 1 << 3
_JSON = 1 << 4
_TERSE = 1 << 11

_INTERRUPTED = b"Interrupted system call"
_ATTEMPTS = 100
_PAUSE = 0.002  # seconds

_QUOTED = 200  # characters of a command that failed: one may have 500 elements

_CAP_NET_ADMIN = 12  # linux/capability.h

# Rules are printed and read by getprotobynumber(3) and its like, whose answers all threads share:
# of 18 634 listings beside two others, 40 had another protocol in a rule.
_RULES = threading.Lock()


class RulesError(OSError):
    """What nftables said of commands that it did not carry out; nothing of them is in force.

    `missing` is set where they named a table, set or element that is not there, and nothing else
    was wrong: where a set is full, what should be deleted from it next is missing too.
    """

    def __init__(self, said: str) -> None:
        lines = [line for line in said.splitlines() if line.strip()]
        super().__init__(
            "; ".join(line[:_QUOTED] for line in lines[:2]) or "nftables gave no reason"
        )
        errors = [line for line in lines if "Error: " in line]
        self.missing = bool(errors) and all("No such file or directory" in e for e in errors)


class Nftables:
    """One context of the library's, in the network namespace it is made in. For any thread.

    Of all contexts one at a time is at work, but for those that deal with `elements_only`, which
    are no rules: they wait for nobody.

    Raises OSError where the library is not installed, and without CAP_NET_ADMIN, which it takes to
    see rules too: the library would say so on the process's own stderr, once for each question.
    """

    def __init__(self, *, elements_only: bool = False) -> None:
        if not _has_net_admin():
            raise OSError("nftables takes root, or CAP_NET_ADMIN")
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise OSError(f"{LIBRARY}: {error}; Debian has it in libnftables1") from None
        _declare(library)
        self._library = library
        self._lock = threading.Lock() if elements_only else _RULES
        self._context = library.nft_ctx_new(0)
        if not self._context:
            raise OSError("libnftables gave no context: no memory, or no netlink")
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> str:
        """Carries out all of `commands` in one transaction, or none of them. Raises RulesError."""
        return self._run(commands, 0)

    def outline(self, command: str) -> str:
        """What `command` lists, without the elements of sets. Raises RulesError."""
        return self._run(command, _TERSE)

    def numbered(self, command: str) -> list[str]:
        """The lines of what `command` lists, each with its handle. Raises RulesError."""
        return self._run(command, _HANDLE).splitlines()

    def ask(self, command: str) -> list[dict[str, Any]]:
        """What `command` lists, as libnftables-json(5) has it. Raises RulesError."""
        answer = self._run(command, _JSON)
        found: list[dict[str, Any]] = json.loads(answer)["nftables"] if answer else []
        return found

    def close(self) -> None:
        """Frees the context."""
        with self._lock:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = None

    def _run(self, commands: str, flags: int) -> str:
        # The kernel breaks a listing off when somebody else changes the rules meanwhile, and the
        # library looks things up before each transaction. Nothing has been done then.
        for _ in range(_ATTEMPTS):
            failed, output, said = self._try(commands, flags)
            if not failed or _INTERRUPTED not in said:
                break
            time.sleep(_PAUSE)
        if failed:
            raise RulesError(said.decode(errors="replace"))
        return output.decode(errors="replace")

    def _try(self, commands: str, flags: int) -> tuple[int, bytes, bytes]:
        with self._lock:
            if not self._context:
                raise ValueError("nftables is closed")
            self._library.nft_ctx_output_set_flags(self._context, flags)
            return (
                self._library.nft_run_cmd_from_buffer(self._context, commands.encode()),
                self._library.nft_ctx_get_output_buffer(self._context),
                self._library.nft_ctx_get_error_buffer(self._context),
            )


def _has_net_admin() -> bool:
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_NET_ADMIN & 1)


def _declare(library: ctypes.CDLL) -> None:
    context = ctypes.c_void_p
    for name, result, arguments in (
        ("nft_ctx_new", context, (ctypes.c_uint32,)),
        ("nft_ctx_free", None, (context,)),
        ("nft_ctx_buffer_output", ctypes.c_int, (context,)),
        ("nft_ctx_buffer_error", ctypes.c_int, (context,)),
        ("nft_ctx_output_set_flags", None, (context, ctypes.c_uint)),
        ("nft_run_cmd_from_buffer", ctypes.c_int, (context, ctypes.c_char_p)),
        ("nft_ctx_get_output_buffer", ctypes.c_char_p, (context,)),
        ("nft_ctx_get_error_buffer", ctypes.c_char_p, (context,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
