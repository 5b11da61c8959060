"""What a portal does to clients: findings, each a rule with an id, a section and its evidence."""
