"""Everything that reads or replaces undocumented parts of mitmproxy."""
