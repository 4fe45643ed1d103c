-- What was removed of a job that has ended: its row and its events stay, and say so.

ALTER TABLE jobs ADD COLUMN artifacts_removed_ms BIGINT;
ALTER TABLE jobs ADD COLUMN reports_removed_ms BIGINT;
CREATE INDEX jobs_ended ON jobs (ended_ms) WHERE ended_ms IS NOT NULL;
