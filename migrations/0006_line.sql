-- What the line, its passes and the lists look for is found by index, however many jobs there are.

-- Whether the results that a job reads are there, are to come (open), or will never come (lost).
ALTER TABLE jobs ADD COLUMN awaited TEXT NOT NULL DEFAULT 'there';
UPDATE jobs SET awaited = CASE
    WHEN EXISTS (SELECT 1 FROM awaited_jobs JOIN jobs AS input ON input.id = awaited_jobs.awaited_id
                 WHERE awaited_jobs.job_id = jobs.id AND input.state IN ('failed', 'cancelled')) THEN 'lost'
    WHEN EXISTS (SELECT 1 FROM awaited_jobs JOIN jobs AS input ON input.id = awaited_jobs.awaited_id
                 WHERE awaited_jobs.job_id = jobs.id AND input.state <> 'succeeded') THEN 'open'
    ELSE 'there' END
WHERE id IN (SELECT job_id FROM awaited_jobs);

DROP INDEX jobs_in_line;
-- With the wait of retries, so that whoever counts the line reads no rows.
CREATE INDEX jobs_in_line ON jobs (state, awaited, priority DESC, position, not_before_ms);
CREATE INDEX jobs_by_state ON jobs (state, position);
CREATE INDEX jobs_tried_again ON jobs (state, not_before_ms);
