-- Models and datasets that jobs may name. Their files lie in the content-addressed store; the manifest says which.

CREATE TABLE models (
    name      TEXT   NOT NULL PRIMARY KEY,
    digest    TEXT   NOT NULL, -- sha256 of the manifest's files
    manifest  TEXT   NOT NULL, -- JSON
    added_ms  BIGINT NOT NULL
);

CREATE TABLE datasets (
    name      TEXT   NOT NULL PRIMARY KEY,
    digest    TEXT   NOT NULL,
    manifest  TEXT   NOT NULL,
    added_ms  BIGINT NOT NULL
);
