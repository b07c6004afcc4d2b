-- Who may call. The record holds a digest of the secret, never the secret.
CREATE TABLE tokens (
    id     TEXT NOT NULL PRIMARY KEY,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;
