-- What helps against failures: who advised what, what was tried, and whether it worked.

ALTER TABLE jobs ADD COLUMN on_failure TEXT NOT NULL DEFAULT 'ask'; -- OnFailure
ALTER TABLE jobs ADD COLUMN remedy_of TEXT;                         -- the failed job that this one is to do better
ALTER TABLE jobs ADD COLUMN resumes BIGINT NOT NULL DEFAULT 0;      -- whether it goes on from that one's checkpoint
CREATE INDEX jobs_by_remedy_of ON jobs (remedy_of) WHERE remedy_of IS NOT NULL;
-- Jobs that may be the answer to one that failed: those of its owner on the same things.
CREATE INDEX jobs_by_kind ON jobs (owner, kind, position);

-- Of a job that goes on where another one had come to.
ALTER TABLE attempts ADD COLUMN resumed_job TEXT;

-- A remedy that was applied: by a new job, or by the next attempt of the same one.
CREATE TABLE trials (
    number      INTEGER NOT NULL PRIMARY KEY,
    job_id      TEXT    NOT NULL REFERENCES jobs (id), -- that tries it
    attempt     BIGINT  NOT NULL,                      -- its attempt that does, or did first
    of_failure  BIGINT  NOT NULL REFERENCES failures (number),
    remedy      TEXT    NOT NULL,                      -- Remedy
    source      TEXT    NOT NULL,                      -- Source: where the remedy came from
    chosen_by   TEXT    NOT NULL,                      -- Chooser
    at_ms       BIGINT  NOT NULL,
    verdict     TEXT,                                  -- Verdict, once there is one
    settled_ms  BIGINT,
    UNIQUE (job_id, attempt)
);
CREATE INDEX trials_by_failure ON trials (of_failure);
CREATE INDEX trials_open ON trials (job_id) WHERE verdict IS NULL;

-- Jobs that followed a failed one on the same things with other options, and whether the failure was gone: what
-- remedies are learnt from that nobody has named.
CREATE TABLE followers (
    job_id     TEXT    NOT NULL REFERENCES jobs (id),
    of_failure BIGINT  NOT NULL REFERENCES failures (number),
    at_ms      BIGINT  NOT NULL,
    changes    TEXT    NOT NULL, -- Vec<Change>
    worked     BIGINT  NOT NULL,
    PRIMARY KEY (job_id, of_failure)
);
CREATE INDEX followers_by_failure ON followers (of_failure);

-- Remedies that people, or the experience of another installation, advise.
CREATE TABLE advice (
    number      INTEGER NOT NULL PRIMARY KEY,
    fingerprint TEXT,             -- against these failures, or
    kind        TEXT,             -- against all of this kind
    remedy      TEXT    NOT NULL, -- Remedy
    note        TEXT    NOT NULL,
    by_whom     TEXT    NOT NULL,
    origin      TEXT,             -- of another installation: its name
    worked      BIGINT  NOT NULL, -- what that one knows of it
    tried       BIGINT  NOT NULL,
    at_ms       BIGINT  NOT NULL
);
CREATE UNIQUE INDEX advice_once ON advice (COALESCE(fingerprint, ''), COALESCE(kind, ''), remedy, COALESCE(origin, ''));
