"""Refusing at speed: what strangers send is read here before mitmproxy sees it."""
