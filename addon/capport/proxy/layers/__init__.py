"""mitmproxy's layers for unknown clients: they answer, and name no server."""
