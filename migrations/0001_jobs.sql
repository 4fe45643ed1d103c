-- Jobs, their history and what their workers said. Column types are those that SQLite and Postgres share; times are
-- milliseconds since 1970.

CREATE TABLE installation (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE jobs (
    id              TEXT   NOT NULL PRIMARY KEY,
    owner           TEXT   NOT NULL,
    trace_id        TEXT   NOT NULL,
    kind            TEXT   NOT NULL,
    spec            TEXT   NOT NULL, -- JobSpec
    inputs          TEXT   NOT NULL, -- the model and the datasets by digest
    limits          TEXT   NOT NULL, -- Limits
    max_attempts    BIGINT NOT NULL,
    cpu_millis      BIGINT NOT NULL,
    memory_bytes    BIGINT NOT NULL,
    priority        BIGINT NOT NULL,
    position        BIGINT NOT NULL, -- order of submission
    state           TEXT   NOT NULL, -- queued, running, stopping, succeeded, failed, cancelled
    attempt         BIGINT NOT NULL, -- the next one while queued, otherwise the current or last one
    failure         TEXT,            -- Failure, where the state is failed
    last_seq        BIGINT NOT NULL, -- of the newest line in job_events or reports
    not_before_ms   BIGINT NOT NULL, -- a retry waits until then
    idempotency_key TEXT,
    request_digest  TEXT   NOT NULL, -- of the submission, to tell a repeated one from another one under the same key
    submitted_ms    BIGINT NOT NULL,
    started_ms      BIGINT,          -- of the first attempt
    ended_ms        BIGINT
);
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX jobs_by_position ON jobs (position);
CREATE INDEX jobs_in_line ON jobs (state, priority DESC, position);

-- One line per change of state; folding a job's lines gives its row.
CREATE TABLE job_events (
    job_id TEXT   NOT NULL REFERENCES jobs (id),
    seq    BIGINT NOT NULL,
    at_ms  BIGINT NOT NULL,
    event  TEXT   NOT NULL, -- JobEvent
    PRIMARY KEY (job_id, seq)
);

-- What workers said. Numbered together with job_events, so that one number resumes a stream of both.
CREATE TABLE reports (
    job_id  TEXT   NOT NULL REFERENCES jobs (id),
    seq     BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    at_ms   BIGINT NOT NULL,
    type    TEXT   NOT NULL,
    report  TEXT   NOT NULL, -- ReportLine
    PRIMARY KEY (job_id, seq)
);
CREATE INDEX reports_by_type ON reports (job_id, type, seq);

CREATE TABLE attempts (
    job_id         TEXT   NOT NULL REFERENCES jobs (id),
    attempt        BIGINT NOT NULL,
    holder         TEXT   NOT NULL, -- the gateway process that speaks for the attempt
    token          TEXT   NOT NULL, -- whoever has it may speak for the attempt
    fence          TEXT   NOT NULL, -- label of the attempt's container
    lease_until_ms BIGINT NOT NULL,
    claimed_ms     BIGINT NOT NULL,
    launched_ms    BIGINT,          -- a container was about to be created
    incarnation    TEXT,            -- the engine's, when the container was about to be created
    report_offset  BIGINT NOT NULL, -- bytes of the events file that are in `reports`
    last_report_ms BIGINT,
    terminated_ms  BIGINT,          -- SIGTERM was about to be sent
    termination    TEXT,            -- why: Termination
    ended_ms       BIGINT,
    outcome        TEXT,            -- Outcome
    last_words     TEXT,            -- the end of what the container wrote to stdout and stderr
    PRIMARY KEY (job_id, attempt)
);
CREATE INDEX attempts_under_way ON attempts (lease_until_ms) WHERE ended_ms IS NULL;

CREATE TABLE artifacts (
    job_id  TEXT   NOT NULL REFERENCES jobs (id),
    path    TEXT   NOT NULL,
    attempt BIGINT NOT NULL,
    role    TEXT,
    bytes   BIGINT NOT NULL,
    sha256  TEXT   NOT NULL,
    PRIMARY KEY (job_id, path)
);
