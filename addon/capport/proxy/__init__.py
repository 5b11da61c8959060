"""Carries verdicts out inside mitmproxy, by its hooks and layers."""
