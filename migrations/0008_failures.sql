-- Why attempts failed, so that the next failure like it is recognised. One row for each attempt that failed.

CREATE TABLE failures (
    number      INTEGER NOT NULL PRIMARY KEY, -- in the order in which they happened; that of its row in failure_texts
    job_id      TEXT    NOT NULL REFERENCES jobs (id),
    attempt     BIGINT  NOT NULL,
    at_ms       BIGINT  NOT NULL,
    fingerprint TEXT    NOT NULL,             -- with the version of the rules that it was made by
    kind        TEXT    NOT NULL,             -- FailureKind
    stage       TEXT    NOT NULL,             -- Stage, or nothing
    device      TEXT    NOT NULL,             -- what it ran on; nothing if nobody came to say so
    failure     TEXT    NOT NULL,             -- Failure
    signature   TEXT    NOT NULL,             -- Signature: what the fingerprint was made of, and the slots of its message
    evidence    TEXT    NOT NULL,             -- Evidence
    UNIQUE (job_id, attempt)
);
CREATE INDEX failures_by_fingerprint ON failures (fingerprint, at_ms);
CREATE INDEX failures_by_kind ON failures (kind, stage);

-- Fingerprints that turned out to be the same failure: what is under the one is also looked for under the other. Undone
-- by removing the row, which loses nothing.
CREATE TABLE fingerprint_joins (
    fingerprint TEXT   NOT NULL PRIMARY KEY,
    joined_to   TEXT   NOT NULL,
    at_ms       BIGINT NOT NULL
);

-- Failures with the fingerprint that stands for all that are the same.
CREATE VIEW known_failures AS
SELECT failures.*, COALESCE(joined_to, failures.fingerprint) AS same
FROM failures LEFT JOIN fingerprint_joins ON fingerprint_joins.fingerprint = failures.fingerprint;

-- Messages and the last lines that were printed, for search.
CREATE VIRTUAL TABLE failure_texts USING fts5 (message, output, tokenize = 'unicode61');
