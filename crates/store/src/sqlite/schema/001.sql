-- Instants are microseconds since the epoch. `finished_at IS NULL` means live, for the partial indexes below.

CREATE TABLE schema_version (
    version INTEGER PRIMARY KEY,
    made_by TEXT NOT NULL
) STRICT;

CREATE TABLE operations (
    id               TEXT    NOT NULL PRIMARY KEY,
    kind             TEXT    NOT NULL,
    namespace        TEXT    NOT NULL,
    job              TEXT    NOT NULL,
    state            TEXT    NOT NULL,
    request          TEXT    NOT NULL,
    actor            TEXT    NOT NULL,
    reason           TEXT,
    requested_at     INTEGER NOT NULL,
    deadline         INTEGER,
    finished_at      INTEGER,
    waiting_for      TEXT,
    progress         TEXT    NOT NULL,
    outcome          TEXT,
    error            TEXT,
    warnings         TEXT    NOT NULL,
    attempts         INTEGER NOT NULL,
    run_at           INTEGER NOT NULL,
    lease_holder     TEXT,
    lease_expires_at INTEGER,
    lease_epoch      INTEGER NOT NULL,
    revision         INTEGER NOT NULL,
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK ((state = 'running') = (lease_expires_at IS NOT NULL))
) STRICT;

-- Two live stops of one job cannot be written.
CREATE UNIQUE INDEX operations_one_live_stop ON operations (namespace, job) WHERE kind = 'stop' AND finished_at IS NULL;
CREATE INDEX operations_live   ON operations (kind, id)                WHERE finished_at IS NULL;
CREATE INDEX operations_due    ON operations (kind, run_at, id)        WHERE state IN ('queued', 'waiting');
CREATE INDEX operations_leased ON operations (kind, lease_expires_at)  WHERE state = 'running';
CREATE INDEX operations_target ON operations (namespace, job, id);

-- A table of its own: a request that joined another has its key too.
CREATE TABLE idempotency_keys (
    key       TEXT NOT NULL PRIMARY KEY,
    digest    TEXT NOT NULL,
    operation TEXT NOT NULL REFERENCES operations (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_operation ON idempotency_keys (operation);

CREATE TABLE clocks (
    alloc       TEXT    NOT NULL,
    task        TEXT    NOT NULL,
    incarnation INTEGER NOT NULL,
    record      TEXT    NOT NULL,
    PRIMARY KEY (alloc, task, incarnation)
) STRICT, WITHOUT ROWID;

-- No reference to the operations: the trail outlives them. AUTOINCREMENT: a number is never used twice.
CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    operation TEXT,
    actor     TEXT    NOT NULL,
    action    TEXT    NOT NULL,
    alloc     TEXT,
    task      TEXT,
    detail    TEXT
) STRICT;
CREATE INDEX audit_operation ON audit (operation, seq) WHERE operation IS NOT NULL;
CREATE INDEX audit_at        ON audit (at);

-- Something to write when somebody asks whether writing works.
CREATE TABLE checks (
    one   INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    count INTEGER NOT NULL
) STRICT;
