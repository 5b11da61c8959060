"""The same without pytest."""

import unittest
import urllib.error
import urllib.request

from capport.testing import Portal


class TheApp(unittest.TestCase):
    portal: Portal

    @classmethod
    def setUpClass(cls) -> None:
        cls.portal = cls.enterClassContext(Portal())

    def setUp(self) -> None:
        self.portal.reset()

    def test_it_is_refused_until_it_is_signed_in(self) -> None:
        proxy = urllib.request.ProxyHandler(self.portal.proxies)
        opener = urllib.request.build_opener(proxy)
        with self.assertRaisesRegex(urllib.error.HTTPError, "511"):
            opener.open(self.portal.url_for("/"))
        self.portal.grant()
        opener.open(self.portal.url_for("/")).close()
        self.assertFalse(self.portal.report.errors())
