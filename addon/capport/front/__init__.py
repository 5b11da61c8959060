"""Refuses unknown clients quickly: reads what they send before mitmproxy sees it."""
