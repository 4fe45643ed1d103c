-- An owner's list comes in order from its index, whatever states it asks for.

CREATE INDEX jobs_by_owner ON jobs (owner, position);
CREATE INDEX jobs_by_owner_and_state ON jobs (owner, state, position);
