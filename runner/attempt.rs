//! One attempt of a job: prepare, start, follow, diagnose, finish.

pub mod reports;
