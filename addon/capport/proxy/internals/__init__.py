"""What mitmproxy does not document, read or replaced here and nowhere else."""
