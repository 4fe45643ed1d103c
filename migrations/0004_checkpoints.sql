-- Where an attempt that was lost had come to, so that the next one goes on from there.

CREATE TABLE checkpoints (
    job_id  TEXT   NOT NULL PRIMARY KEY REFERENCES jobs (id),
    attempt BIGINT NOT NULL, -- the one that wrote it; its folder is named after it
    step    BIGINT NOT NULL,
    path    TEXT   NOT NULL, -- below that folder
    bytes   BIGINT NOT NULL,
    digest  TEXT   NOT NULL  -- of its files, as models have one
);

ALTER TABLE attempts ADD COLUMN resumed_attempt BIGINT; -- whose checkpoint the attempt was given
ALTER TABLE attempts ADD COLUMN resumed_step BIGINT;
-- When the attempt was launched and ended by us, by a clock that nobody sets; it counts from the boot of that name.
ALTER TABLE attempts ADD COLUMN boot TEXT;
ALTER TABLE attempts ADD COLUMN launched_steady_ms BIGINT;
ALTER TABLE attempts ADD COLUMN terminated_steady_ms BIGINT;
-- Processes that died while they spoke for the attempt, one after the other and without a report in between.
ALTER TABLE attempts ADD COLUMN orphaned BIGINT NOT NULL DEFAULT 0;
