"""The tables that sessions are kept in; times in them are in store time (`boot_clock`)."""

from capport.stores.sqlite.boot_clock import CLOCK
from capport.stores.sqlite.schema import Schema

_VERSION_1 = (
    """CREATE TABLE sessions (
        client TEXT NOT NULL PRIMARY KEY,
        granted REAL NOT NULL,
        expires REAL NOT NULL,
        idle REAL,
        last_seen REAL NOT NULL,
        granted_at REAL NOT NULL,
        granted_by TEXT NOT NULL,
        how TEXT NOT NULL,
        name TEXT NOT NULL,
        ends REAL GENERATED ALWAYS AS
            (CASE WHEN idle IS NULL THEN expires
             ELSE min(expires, max(granted, last_seen) + idle) END) VIRTUAL
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX sessions_by_end ON sessions (ends)",
    # The clients whose sessions changed, in order, so that another process reads only those. Old
    # rows are deleted (`housekeeping`); a process that needs them reads all sessions.
    "CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, client TEXT NOT NULL) STRICT",
    *CLOCK,
)
SESSIONS = Schema("sessions", 0x63617070, (_VERSION_1,))  # "capp"

COLUMNS = "client, granted, expires, idle, last_seen, granted_at, granted_by, how, name"
CHANGE = "INSERT INTO changes (client) VALUES (?)"
"""Records a change to this client's session for the other processes."""
