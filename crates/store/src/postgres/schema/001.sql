-- Instants are microseconds since the epoch, by this database's clock where a lease or a due row is decided. JSON stands in text:
-- it is read back as it was written.

CREATE TABLE schema_version (
    version INTEGER PRIMARY KEY,
    made_by TEXT NOT NULL
);

-- What time it is, for leases, the duty and what is due.
CREATE FUNCTION curfew_now() RETURNS BIGINT LANGUAGE sql VOLATILE AS
    $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

CREATE TABLE operations (
    id               UUID    NOT NULL PRIMARY KEY,
    kind             TEXT    NOT NULL,
    target           TEXT    NOT NULL,
    parent           UUID    REFERENCES operations (id) ON DELETE CASCADE,
    state            TEXT    NOT NULL,
    request          TEXT    NOT NULL,
    actor            TEXT    NOT NULL,
    reason           TEXT,
    requested_at     BIGINT  NOT NULL,
    deadline         BIGINT,
    finished_at      BIGINT,
    waiting_for      TEXT,
    progress         TEXT    NOT NULL,
    outcome          TEXT,
    error            TEXT,
    warnings         TEXT    NOT NULL,
    attempts         BIGINT  NOT NULL,
    run_at           BIGINT  NOT NULL,
    lease_holder     TEXT,
    lease_expires_at BIGINT,
    lease_epoch      BIGINT  NOT NULL,
    revision         BIGINT  NOT NULL,
    cancel           TEXT,
    pause            TEXT,
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK ((state = 'running') = (lease_expires_at IS NOT NULL))
);

-- Two live operations of one kind on one target cannot be written, but for submits.
CREATE UNIQUE INDEX operations_one_live ON operations (target, kind)          WHERE kind <> 'submit' AND finished_at IS NULL;
CREATE INDEX operations_live            ON operations (kind, id)              WHERE finished_at IS NULL;
CREATE INDEX operations_due             ON operations (kind, run_at, id)      WHERE state IN ('queued', 'waiting');
CREATE INDEX operations_leased          ON operations (kind, lease_expires_at) WHERE state = 'running';
CREATE INDEX operations_target          ON operations (target, id);
CREATE INDEX operations_parent          ON operations (parent, id)            WHERE parent IS NOT NULL;
CREATE INDEX operations_finished        ON operations (finished_at)           WHERE finished_at IS NOT NULL;

-- A table of its own: a request that joined another has its key too.
CREATE TABLE idempotency_keys (
    key       TEXT NOT NULL PRIMARY KEY,
    digest    TEXT NOT NULL,
    operation UUID NOT NULL REFERENCES operations (id) ON DELETE CASCADE
);
CREATE INDEX idempotency_keys_operation ON idempotency_keys (operation);

CREATE TABLE clocks (
    alloc       TEXT   NOT NULL,
    task        TEXT   NOT NULL,
    incarnation BIGINT NOT NULL,
    record      TEXT   NOT NULL,
    PRIMARY KEY (alloc, task, incarnation)
);

CREATE TABLE kinds (
    kind            TEXT   NOT NULL PRIMARY KEY,
    pause           TEXT,
    duty_holder     TEXT,
    duty_expires_at BIGINT,
    duty_epoch      BIGINT NOT NULL DEFAULT 0
);

-- No reference to the operations: the trail outlives them.
CREATE TABLE audit (
    seq       BIGINT PRIMARY KEY,
    at        BIGINT NOT NULL,
    operation UUID,
    actor     TEXT   NOT NULL,
    action    TEXT   NOT NULL,
    alloc     TEXT,
    task      TEXT,
    detail    TEXT
);
CREATE INDEX audit_operation ON audit (operation, seq) WHERE operation IS NOT NULL;
CREATE INDEX audit_at        ON audit (at);

-- Numbers the trail. A row, not a sequence: whoever numbers holds it until the commit, so that the numbers have no gap and come
-- to be seen in their order.
CREATE TABLE audit_end (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    seq BIGINT  NOT NULL
);
INSERT INTO audit_end VALUES (1, 0);

-- Something to write when somebody asks whether writing works.
CREATE TABLE checks (
    one   INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    count BIGINT  NOT NULL
);
INSERT INTO checks VALUES (1, 0);
