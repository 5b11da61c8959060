"""What the login server's pages and the APIs share: who asks, states, records, and the gate."""
