"""An app on aiohttp, which asks again until it is signed in."""

import asyncio
import ssl

import aiohttp

from capport.testing import Portal


def test_the_app_goes_on_when_it_is_signed_in(portal: Portal) -> None:
    trusted = ssl.create_default_context(cafile=portal.ca_file)

    async def app() -> int:
        async with aiohttp.ClientSession() as session:
            for wait in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
                url = portal.url_for("/")
                async with session.get(url, proxy=portal.proxy_url, ssl=trusted) as answer:
                    if answer.status != 511:
                        return answer.status
                await asyncio.sleep(wait)
            return 511

    async def run() -> int:
        running = asyncio.create_task(app())
        await asyncio.to_thread(portal.wait_for, lambda report: len(report.requests) >= 2)
        await asyncio.to_thread(portal.grant)
        return await running

    assert asyncio.run(run()) == 200
    assert not portal.report.errors()
