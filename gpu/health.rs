//! How the host's GPUs are, by what their driver counts, and what became of them during an attempt: pure rules over two
//! looks at them. [`nvml`] takes the looks.
//!
//! The numbers of Xid events are those of NVIDIA's Xid catalogue. A damaged GPU is told from a program that failed on a
//! good one: the first is nothing that another attempt on the same GPU, or another program, would mend.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod nvml;

/// One look at all GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// The driver's version.
    pub driver: Option<String>,
    pub gpus: Vec<Reading>,
}

/// One look at one GPU. What the GPU does not count is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Its place among the host's, from 0.
    pub index: u32,
    /// Such as `GPU-5a2e...`; unknown of one that does not answer.
    pub uuid: Option<String>,
    /// Such as `NVIDIA H200`.
    pub name: Option<String>,
    /// Bytes.
    pub memory_total: Option<u64>,
    /// Bytes.
    pub memory_used: Option<u64>,
    /// Errors of its memory that could not be corrected, since the driver was loaded.
    pub uncorrected: Option<u64>,
    /// The same since it was made.
    pub uncorrected_ever: Option<u64>,
    /// Whether rows of its memory are to be replaced at the next reset.
    pub rows_pending: bool,
    /// Whether there was nothing left to replace one with.
    pub rows_failed: bool,
    /// Whether the driver has lost it.
    pub lost: bool,
}

/// The driver has told of an error on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xid {
    /// The GPU's UUID, where it could be asked.
    pub uuid: Option<String>,
    pub number: u64,
}

/// What became of a GPU between two looks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GpuFacts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Bytes of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Bytes of it that were taken at the end, by whomever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<u64>,
    /// Errors of its memory, meanwhile, that could not be corrected.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub new_uncorrected: u64,
    /// Whether rows of its memory have come to wait for being replaced.
    #[serde(default, skip_serializing_if = "is_false")]
    pub rows_pending: bool,
    /// Whether replacing one has failed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub rows_failed: bool,
    /// Whether the driver has lost it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lost: bool,
    /// Numbers of the Xid events that the driver told of, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xids: Vec<u64>,
}

/// What became of all GPUs between two looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuAccount {
    /// The driver's version.
    pub driver: Option<String>,
    pub gpus: Vec<GpuFacts>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What is the matter with a GPU, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It is damaged or lost.
    Hardware(String),
    /// A program failed on it.
    Fault(String),
}

/// Uncorrectable memory errors, failing and pending remaps, NVLink, fallen off the bus, contained and not.
const HARDWARE: [u64; 7] = [48, 63, 64, 74, 79, 94, 95];
/// Engine exceptions, memory page faults, a stopped channel. Not 45: a program that was killed leaves that behind.
const FAULTS: [u64; 3] = [13, 31, 43];

/// What became of the GPUs between two looks, in which the driver told of these events; by their place.
#[must_use]
pub fn between(before: &Look, after: &Look, xids: &[Xid]) -> Vec<GpuFacts> {
    let gone = before.gpus.iter().filter(|then| now(after, then).is_none());
    let gone = gone.map(|then| facts(Some(then), &Reading { lost: true, ..then.clone() }, xids));
    let there = after.gpus.iter().map(|now| facts(then(before, now), now, xids));
    there.chain(gone).collect()
}

/// The same GPU, by what it is called, and by its place where it does not say.
fn is_same(one: &Reading, other: &Reading) -> bool {
    match (&one.uuid, &other.uuid) {
        (Some(one), Some(other)) => one == other,
        _ => one.index == other.index,
    }
}

fn then<'a>(before: &'a Look, now: &Reading) -> Option<&'a Reading> {
    before.gpus.iter().find(|then| is_same(then, now))
}

fn now<'a>(after: &'a Look, then: &Reading) -> Option<&'a Reading> {
    after.gpus.iter().find(|now| is_same(then, now))
}

fn facts(then: Option<&Reading>, now: &Reading, xids: &[Xid]) -> GpuFacts {
    let uuid = now.uuid.clone().or_else(|| then?.uuid.clone());
    let risen = |count: fn(&Reading) -> Option<u64>| {
        let (before, after) = then.and_then(count).zip(count(now))?;
        Some(after.saturating_sub(before))
    };
    // A reset sets the first back, not the second.
    let new_uncorrected = risen(|gpu| gpu.uncorrected).max(risen(|gpu| gpu.uncorrected_ever)).unwrap_or(0);
    GpuFacts {
        name: now.name.clone().or_else(|| then?.name.clone()),
        memory_bytes: now.memory_total.or_else(|| then?.memory_total),
        memory_used_bytes: now.memory_used,
        new_uncorrected,
        rows_pending: now.rows_pending && then.is_some_and(|then| !then.rows_pending),
        rows_failed: now.rows_failed && then.is_some_and(|then| !then.rows_failed),
        lost: now.lost,
        xids: xids.iter().filter(|xid| xid.uuid.is_some() && xid.uuid == uuid).map(|xid| xid.number).collect(),
        uuid,
    }
}

impl GpuFacts {
    /// What is the matter with it, if anything is; its damage before its faults.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        let damage = [
            self.lost.then(|| "is lost to the driver".to_owned()),
            (self.new_uncorrected > 0).then(|| {
                format!("has counted {} new errors of its memory that it cannot correct", self.new_uncorrected)
            }),
            self.rows_failed.then(|| "has no rows of memory left to replace a bad one with".to_owned()),
            self.xid_among(&HARDWARE),
            self.rows_pending.then(|| "has to replace rows of its memory".to_owned()),
        ];
        let damage: Vec<_> = damage.into_iter().flatten().collect();
        if !damage.is_empty() {
            return Some(Trouble::Hardware(format!("{} {}", self.called(), damage.join(" and "))));
        }
        self.xid_among(&FAULTS).map(|xid| Trouble::Fault(format!("{} {xid}", self.called())))
    }

    fn xid_among(&self, numbers: &[u64]) -> Option<String> {
        let xid = self.xids.iter().find(|xid| numbers.contains(xid))?;
        Some(format!("has told of Xid {xid}"))
    }

    fn called(&self) -> String {
        let name = self.name.as_deref().unwrap_or("a GPU");
        self.uuid.as_ref().map_or_else(|| name.to_owned(), |uuid| format!("{name} ({uuid})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32) -> Reading {
        Reading {
            index,
            uuid: Some(format!("GPU-{index}")),
            name: Some("NVIDIA H200".into()),
            uncorrected: Some(2),
            uncorrected_ever: Some(5),
            ..Reading::default()
        }
    }

    fn look(gpus: impl IntoIterator<Item = Reading>) -> Look {
        Look { driver: Some("580".into()), gpus: gpus.into_iter().collect() }
    }

    fn xid(index: u32, number: u64) -> Xid {
        Xid { uuid: Some(format!("GPU-{index}")), number }
    }

    /// What is the matter with the first of two GPUs.
    fn trouble(now: Reading, xids: &[Xid]) -> Option<Trouble> {
        let facts = between(&look([gpu(0), gpu(1)]), &look([now, gpu(1)]), xids);
        assert_eq!(facts[1].trouble(), None, "the other one is well");
        facts[0].trouble()
    }

    #[test]
    fn damage_is_told_from_what_was_there_before_and_from_faults_of_programs() {
        let hardware = |trouble: Option<Trouble>, words: &str| {
            let Some(Trouble::Hardware(told)) = trouble else { panic!("{trouble:?}") };
            assert!(told.starts_with("NVIDIA H200 (GPU-0) ") && told.contains(words), "{told}");
        };
        assert_eq!(trouble(gpu(0), &[]), None, "old errors are no news");
        hardware(trouble(Reading { uncorrected: Some(4), ..gpu(0) }, &[]), "2 new errors");
        hardware(trouble(Reading { uncorrected: Some(0), uncorrected_ever: Some(6), ..gpu(0) }, &[]), "1 new errors");
        hardware(trouble(Reading { rows_failed: true, ..gpu(0) }, &[]), "no rows");
        hardware(trouble(Reading { rows_pending: true, ..gpu(0) }, &[]), "replace rows");
        hardware(trouble(gpu(0), &[xid(0, 31), xid(0, 79)]), "Xid 79");
        assert!(matches!(trouble(gpu(0), &[xid(0, 31)]), Some(Trouble::Fault(told)) if told.contains("Xid 31")));
        assert_eq!(trouble(gpu(0), &[xid(0, 45)]), None, "what a kill leaves behind");
    }

    #[test]
    fn a_gpu_that_does_not_answer_or_is_not_there_any_more_is_lost() {
        let silent = Reading { index: 0, lost: true, ..Reading::default() };
        let facts = between(&look([gpu(0)]), &look([silent]), &[]);
        assert_eq!((facts[0].uuid.as_deref(), facts[0].lost), (Some("GPU-0"), true), "it is known by its place");
        let facts = between(&look([gpu(0), gpu(1)]), &look([gpu(0)]), &[]);
        let lost: Vec<_> = facts.iter().map(|gpu| (gpu.uuid.as_deref(), gpu.lost)).collect();
        assert_eq!(lost, [(Some("GPU-0"), false), (Some("GPU-1"), true)]);
        // Places are given out anew when one is gone.
        let moved = Reading { index: 0, ..gpu(1) };
        let facts = between(&look([gpu(0), gpu(1)]), &look([moved]), &[]);
        assert_eq!(facts.iter().map(|gpu| gpu.lost).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn where_nobody_looked_before_nothing_is_new_but_what_is_lost() {
        let bad = Reading { uncorrected: Some(9), rows_pending: true, rows_failed: true, ..gpu(0) };
        assert_eq!(between(&Look::default(), &look([bad.clone()]), &[])[0].trouble(), None);
        let lost = Reading { lost: true, ..bad };
        assert!(between(&Look::default(), &look([lost]), &[])[0].trouble().is_some());
    }
}
