-- Who comes next: what each owner has had of the host, and what is looked for in line.

CREATE TABLE owners (
    owner             TEXT             NOT NULL PRIMARY KEY,
    mean              DOUBLE PRECISION NOT NULL, -- share of the host that its ended attempts have had, as of then
    as_of_ms          BIGINT           NOT NULL,
    oldest_started_ms BIGINT           NOT NULL  -- when its oldest job in line last started
);

-- Whether an attempt that has ended is in its owner's mean. What ran before there was one counts for nothing.
ALTER TABLE attempts ADD COLUMN counted BIGINT NOT NULL DEFAULT 0;
UPDATE attempts SET counted = 1 WHERE ended_ms IS NOT NULL;
CREATE INDEX attempts_to_count ON attempts (ended_ms) WHERE ended_ms IS NOT NULL AND counted = 0;

-- Only of jobs in line, so that all others cost nothing.
CREATE INDEX line_by_rank ON jobs (owner, awaited, priority DESC, position, not_before_ms) WHERE state = 'queued';
CREATE INDEX line_by_age ON jobs (owner, awaited, position, not_before_ms) WHERE state = 'queued';
