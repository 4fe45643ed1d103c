-- When an attempt's container was first about to be started: from then on its worker may have run.

ALTER TABLE attempts ADD COLUMN starting_ms BIGINT;
