"""The kernel's part of the portal: nftables, and the sets of clients and garden addresses in it."""
