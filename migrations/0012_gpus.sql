-- GPUs and MIG slices by their UUIDs: those that an attempt has.

ALTER TABLE attempts ADD COLUMN gpus TEXT NOT NULL DEFAULT '[]';
