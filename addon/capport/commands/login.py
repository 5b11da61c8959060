"""`capport login`: runs the embedded login server in its own process, beside the proxy."""

import asyncio
import logging
import signal
from argparse import Namespace
from pathlib import Path

from capport.commands import CommandError, writable_store
from capport.policy.policy_file import PolicyError
from capport.service.service import Service
from capport.service.settings import SettingError, Settings

logger = logging.getLogger(__name__)


def serve(arguments: Namespace) -> None:
    """Serves until SIGINT or SIGTERM, and follows the policy file. Raises CommandError, OSError.

    A proxy with the same policy and the same store shares the sessions and the login records. Its
    511s link to this login server, and a client that signs in here is known there.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(_serve(arguments))


async def _serve(arguments: Namespace) -> None:
    settings = Settings(
        policy=Path(arguments.policy),
        sessions=arguments.sessions,
        socket=Path(arguments.socket) if arguments.socket else None,
    )
    try:
        service = Service(settings, open_sessions=writable_store)
    except (PolicyError, SettingError) as error:
        raise CommandError(str(error)) from None
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await service.start()
        logger.info(f"The login server listens on {', '.join(map(str, service.listens_at))}")
        await stop.wait()
    finally:
        await service.stop()
