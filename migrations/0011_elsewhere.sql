-- Failures that other installations have seen, as their exports say. What they advise stands in `advice`.

CREATE TABLE failures_elsewhere (
    fingerprint  TEXT   NOT NULL,
    installation TEXT   NOT NULL, -- its public id
    name         TEXT   NOT NULL, -- what people call it
    count        BIGINT NOT NULL, -- attempts that failed so there
    at_ms        BIGINT NOT NULL, -- of the import
    PRIMARY KEY (fingerprint, installation)
);
