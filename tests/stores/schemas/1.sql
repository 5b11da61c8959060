-- A store of schema 1, as the sqlite3 shell dumps it.
PRAGMA journal_mode = WAL;
PRAGMA application_id = 1667330160;
PRAGMA user_version = 1;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE sessions (
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
    ) STRICT, WITHOUT ROWID;
INSERT INTO sessions VALUES('02:00:00:00:00:07',1000.0,91400.0,NULL,1000.0,1690000000.0,'cli','grant','');
INSERT INTO sessions VALUES('192.0.2.7',4000.0,7600.0,1800.0,4500.0,1700000000.0,'ann','voucher','Zoë');
CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, client TEXT NOT NULL) STRICT;
INSERT INTO changes VALUES(1,'192.0.2.7');
CREATE TABLE clock (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        boot TEXT NOT NULL,
        shift REAL NOT NULL,
        checkpoint REAL NOT NULL
    ) STRICT;
INSERT INTO clock VALUES(1,'0c1d1b6e-0000-4000-8000-000000000001',100.0,5000.0);
DELETE FROM sqlite_sequence;
INSERT INTO sqlite_sequence VALUES('changes',1);
CREATE INDEX sessions_by_end ON sessions (ends);
COMMIT;
