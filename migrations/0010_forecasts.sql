-- What was predicted of jobs beside what they came to, and by what jobs are found that are like another one.

ALTER TABLE jobs ADD COLUMN estimate TEXT; -- Estimate; NULL where it was not kept
ALTER TABLE jobs ADD COLUMN likeness TEXT; -- digest of its kind, its models and its rows; NULL where it was not kept
CREATE INDEX jobs_by_likeness ON jobs (likeness, position) WHERE likeness IS NOT NULL;

-- One row for each thing that an attempt was measured by.
CREATE TABLE forecasts (
    number    INTEGER NOT NULL PRIMARY KEY, -- in the order in which they were measured
    job_id    TEXT    NOT NULL REFERENCES jobs (id),
    attempt   BIGINT  NOT NULL,
    at_ms     BIGINT  NOT NULL,
    kind      TEXT    NOT NULL,
    method    TEXT    NOT NULL,             -- of a finetune; otherwise empty
    quantity  TEXT    NOT NULL,             -- memory or disk
    predicted BIGINT  NOT NULL,             -- bytes
    measured  BIGINT  NOT NULL,             -- bytes; where the attempt ran out of it, what it had
    ran_out   BIGINT  NOT NULL,             -- 1 if it needed more than what was measured, and nobody knows how much
    UNIQUE (job_id, attempt, quantity)
);
CREATE INDEX forecasts_by_kind ON forecasts (kind, method, number);
