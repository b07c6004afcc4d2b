-- Whose a node is while it is drained: two drains of one node cannot be written.
CREATE TABLE claims (
    node      TEXT NOT NULL PRIMARY KEY,
    operation TEXT NOT NULL REFERENCES operations (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_operation ON claims (operation);

-- Stops join; of drains the claims take care, and two undrains of one node may run at once.
DROP INDEX operations_one_live;
CREATE UNIQUE INDEX operations_one_live ON operations (target, kind) WHERE kind = 'stop' AND finished_at IS NULL;
