"""The protocol layers for unknown clients: they answer, and connect to no server themselves."""
