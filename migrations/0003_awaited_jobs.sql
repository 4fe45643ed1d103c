-- Which jobs' results a job reads that were not there when it was submitted: it stays in line until all of them have
-- succeeded, and fails when one of them has not.

CREATE TABLE awaited_jobs (
    job_id     TEXT NOT NULL REFERENCES jobs (id),
    awaited_id TEXT NOT NULL REFERENCES jobs (id),
    PRIMARY KEY (job_id, awaited_id)
);
CREATE INDEX awaited_jobs_by_awaited ON awaited_jobs (awaited_id);
