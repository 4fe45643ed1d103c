-- GPUs that no job gets.

CREATE TABLE cordons (
    uuid    TEXT   NOT NULL PRIMARY KEY, -- the GPU's, never a slice's
    reason  TEXT   NOT NULL,             -- in words
    at_ms   BIGINT NOT NULL,
    by_whom TEXT   NOT NULL,             -- drydock, or an owner
    fatal   BIGINT NOT NULL              -- 1 if what runs on it must not go on
);
