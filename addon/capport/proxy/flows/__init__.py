"""What mitmproxy, mitmweb and the events show of the clients' flows."""
