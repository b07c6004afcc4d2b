-- An operation is about a job, a node or a datacenter: one word names it, as core's Target::key writes it.
ALTER TABLE operations ADD COLUMN target TEXT NOT NULL DEFAULT '';
UPDATE operations SET target = 'job:' || namespace || '/' || job;

DROP INDEX operations_one_live_stop;
DROP INDEX operations_target;
ALTER TABLE operations DROP COLUMN namespace;
ALTER TABLE operations DROP COLUMN job;

ALTER TABLE operations ADD COLUMN parent TEXT REFERENCES operations (id) ON DELETE CASCADE;
-- Who wants it cancelled, who paused it.
ALTER TABLE operations ADD COLUMN cancel TEXT;
ALTER TABLE operations ADD COLUMN pause TEXT;

-- Two live operations of one kind on one target cannot be written, but for submits.
CREATE UNIQUE INDEX operations_one_live ON operations (target, kind) WHERE kind <> 'submit' AND finished_at IS NULL;
CREATE INDEX operations_target   ON operations (target, id);
CREATE INDEX operations_parent   ON operations (parent, id)   WHERE parent IS NOT NULL;
CREATE INDEX operations_finished ON operations (finished_at)  WHERE finished_at IS NOT NULL;

-- A kind that has no row was never paused, and nobody ever had its duty.
CREATE TABLE kinds (
    kind            TEXT    NOT NULL PRIMARY KEY,
    pause           TEXT,
    duty_holder     TEXT,
    duty_expires_at INTEGER,
    duty_epoch      INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
