"""What the proxy's hooks use of the service, which is `Service`, or in a worker `WorkerService`."""

from pathlib import Path
from typing import Protocol

from capport.core.client import Client, ClientId, Peer
from capport.gate import Gate
from capport.service.enforcement import OpenConnections
from capport.service.login_links import LoginLinks


class PortalService(Protocol):
    """The gate, and everything that follows it or that it follows."""

    gate: Gate

    @property
    def login(self) -> LoginLinks | None:
        """The login server, if there is one."""

    async def start(self, connections: OpenConnections | None = None) -> None:
        """Starts to serve, and to follow the sessions. Raises OSError."""

    async def stop(self) -> None:
        """Ends everything, and writes what is pending."""

    def is_held(self, peer: Peer, client: Client) -> bool:
        """Whether the kernel holds a client that has a session, which is a fault."""

    def follow_policy_file(self, path: Path | None) -> None:
        """Follows another policy file from now on. Raises PolicyError, and keeps the old one."""

    def write_events_to(self, path: Path | None) -> None:
        """Writes events to another file from now on. Raises SettingError, and keeps the old one."""

    def watch(self, client: ClientId) -> None:
        """Writes each request and handshake of a client as an event of its own from now on."""

    def unwatch(self, client: ClientId) -> None:
        """Ends that."""
