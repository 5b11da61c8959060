"""What the login server's pages and the APIs share: clients, states, records, and the gate."""
