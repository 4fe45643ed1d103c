-- When an attempt's container was first about to be started: from then on its worker may have run.

ALTER TABLE attempts ADD COLUMN starting_ms BIGINT;
-- Of those under way it is not known; whoever may have run must not be started a second time.
UPDATE attempts SET starting_ms = launched_ms WHERE ended_ms IS NULL;
