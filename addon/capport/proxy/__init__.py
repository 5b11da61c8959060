"""What carries a verdict out: mitmproxy's hooks and layers, and the kernel's rules."""
