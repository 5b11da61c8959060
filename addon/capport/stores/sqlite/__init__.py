"""Sessions in one SQLite file that every process on this machine shares."""
