//! Which of the things that ended jobs have left have had their time.

use std::collections::HashSet;
use std::time::Duration;

use drydock_spec::JobId;

use crate::api::{Taken, TakenKind};
use crate::blobs::size;
use crate::config::RetentionConfig;
use crate::plan::ResolvedInputs;
use crate::store::Left;

const DAY_SECS: u64 = 24 * 3600;

/// What is kept at most; without a limit everything is.
pub(super) struct Limits {
    age: Option<(Duration, &'static str)>,
    jobs: Option<(u64, &'static str)>,
    bytes: Option<(u64, &'static str)>,
}

impl Limits {
    pub(super) fn of_artifacts(policy: &RetentionConfig) -> Self {
        Self {
            age: policy.artifacts_age.map(|age| (age, "artifacts_age")),
            jobs: policy.artifacts_jobs.map(|jobs| (jobs, "artifacts_jobs")),
            bytes: policy.artifacts_bytes.map(|bytes| (bytes.0, "artifacts_bytes")),
        }
    }

    pub(super) fn of_reports(policy: &RetentionConfig) -> Self {
        Self {
            age: policy.reports_age.map(|age| (age, "reports_age")),
            jobs: policy.reports_jobs.map(|jobs| (jobs, "reports_jobs")),
            bytes: None,
        }
    }

    pub(super) fn any(&self) -> bool {
        self.age.is_some() || self.jobs.is_some() || self.bytes.is_some()
    }

    /// Why something goes of which so much is newer; nothing if it stays.
    fn exceeded(&self, age: Duration, newer_jobs: u64, bytes_with_it: u64) -> Option<String> {
        // Whole days where there are any: nobody sets a policy in months of 30.44 days.
        let time = |time: Duration| match time.as_secs() / DAY_SECS {
            0 => humantime::format_duration(Duration::from_secs(time.as_secs())).to_string(),
            days => format!("{days}days"),
        };
        if let Some((most, key)) = self.age.filter(|(most, _)| age > *most) {
            return Some(format!("the job ended {} ago, {key} is {}", time(age), time(most)));
        }
        if let Some((most, key)) = self.jobs.filter(|(most, _)| newer_jobs >= *most) {
            return Some(format!("{newer_jobs} jobs with such are newer, {key} is {most}"));
        }
        let (most, key) = self.bytes.filter(|(most, _)| bytes_with_it > *most)?;
        Some(format!("with what is newer it takes {}, {key} is {}", size(bytes_with_it), size(most)))
    }
}

/// What goes of `left`, which comes newest first. What is wanted stays and counts.
pub(super) fn decide(kind: TakenKind, left: &[Left], limits: &Limits, now_ms: i64) -> Vec<Taken> {
    let (mut jobs, mut bytes) = (0, 0_u64);
    let mut taken = Vec::new();
    for left in left {
        let age = Duration::from_millis(u64::try_from(now_ms - left.ended_ms).unwrap_or(0));
        let with_it = bytes.saturating_add(left.bytes);
        match limits.exceeded(age, jobs, with_it).filter(|_| !left.wanted) {
            Some(why) => taken.push(Taken { what: kind, name: left.job.to_string(), why, bytes: left.bytes }),
            None => (jobs, bytes) = (jobs + 1, with_it),
        }
    }
    taken
}

/// The jobs that are named as `job:<id>` by what is in use.
pub(super) fn named_jobs(in_use: &[ResolvedInputs]) -> HashSet<JobId> {
    let names = in_use.iter().flat_map(ResolvedInputs::names);
    names
        .filter_map(|name| {
            let id = name.strip_prefix("job:")?.split('/').next()?;
            id.to_ascii_uppercase().parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;
    use proptest::prelude::*;

    use super::*;

    const DAY_MS: i64 = 24 * 3600 * 1000;

    fn left(n: u128, age_days: i64, bytes: u64, wanted: bool) -> Left {
        Left { job: JobId::from_parts(1, n), ended_ms: 1000 * DAY_MS - age_days * DAY_MS, bytes, wanted }
    }

    fn names(policy: &RetentionConfig, left: &[Left]) -> Vec<(String, String)> {
        let taken = decide(TakenKind::Artifacts, left, &Limits::of_artifacts(policy), 1000 * DAY_MS);
        taken.into_iter().map(|one| (one.name, one.why)).collect()
    }

    #[test]
    fn without_a_limit_nothing_goes() {
        assert!(names(&RetentionConfig::default(), &[left(1, 900, 1 << 50, false)]).is_empty());
    }

    #[test]
    fn what_goes_says_why() {
        let policy = RetentionConfig {
            artifacts_age: Some(Duration::from_secs(30 * 24 * 3600)),
            artifacts_jobs: Some(2),
            artifacts_bytes: Some(ByteSize(100)),
            ..RetentionConfig::default()
        };
        let all = [
            left(5, 1, 60, false),
            left(4, 2, 50, false),
            left(3, 3, 30, false),
            left(2, 4, 5, false),
            left(1, 31, 1, false),
        ];
        let why: Vec<_> = names(&policy, &all).into_iter().map(|(_, why)| why).collect();
        assert_eq!(
            why,
            [
                "with what is newer it takes 110 B, artifacts_bytes is 100 B",
                "2 jobs with such are newer, artifacts_jobs is 2",
                "the job ended 31days ago, artifacts_age is 30days",
            ]
        );
    }

    #[test]
    fn what_is_wanted_stays_whatever_the_limits_say() {
        let policy = RetentionConfig { artifacts_jobs: Some(1), ..RetentionConfig::default() };
        let taken = names(&policy, &[left(3, 1, 1, false), left(2, 2, 1, true), left(1, 3, 1, false)]);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].0, JobId::from_parts(1, 1).to_string());
    }

    proptest! {
        #[test]
        fn what_stays_keeps_the_limits_but_for_what_is_wanted(
            sizes in proptest::collection::vec((0..100u64, any::<bool>()), 0..30),
            jobs in 1..10u64,
            bytes in 0..400u64,
        ) {
            let policy = RetentionConfig {
                artifacts_jobs: Some(jobs), artifacts_bytes: Some(ByteSize(bytes)), ..RetentionConfig::default()
            };
            let all: Vec<_> =
                (0..).zip(&sizes).map(|(n, (bytes, wanted))| left(n, n as i64, *bytes, *wanted)).collect();
            let gone: HashSet<_> = names(&policy, &all).into_iter().map(|(name, _)| name).collect();
            let stays: Vec<_> = all.iter().filter(|left| !gone.contains(&left.job.to_string())).collect();
            prop_assert!(all.iter().filter(|left| left.wanted).all(|left| !gone.contains(&left.job.to_string())));
            if all.iter().all(|left| !left.wanted) {
                prop_assert!(stays.len() as u64 <= jobs);
                prop_assert!(stays.iter().map(|left| left.bytes).sum::<u64>() <= bytes);
            }
        }
    }
}
