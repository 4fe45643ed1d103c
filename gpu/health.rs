//! What became of a host's GPUs between two looks at them: pure rules.
//!
//! The numbers of Xid events are those of [NVIDIA's Xid catalogue](https://docs.nvidia.com/deploy/xid-errors/), as of its
//! table for Ampere and newer. A damaged GPU is told from a program that failed on a good one: the first is nothing that
//! another attempt on the same GPU, or another program, would mend.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inventory::{Gpu, Inventory};

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

/// What became of GPUs between two looks.
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

/// Xid events by number, and what happened in a few words.
type Xids = [(u64, &'static str)];

/// Those after which the catalogue has the GPU reset, the host restarted or its links looked at; and two of memory that
/// is bad and was dealt with, 63 and 94.
const HARDWARE: &Xids = &[
    (46, "it stopped and does not come back"),
    (48, "memory that cannot be corrected"),
    (62, "its power controller halted"),
    (63, "a row of memory is to be replaced"),
    (64, "a row of memory could not be replaced"),
    (74, "a link to another GPU failed"),
    (79, "it fell off the bus"),
    (94, "bad memory, met by one program only"),
    (95, "bad memory that more than one program met"),
    (109, "it does not change from one program to the next"),
    (110, "a fault of its security"),
    (119, "its firmware does not answer"),
    (120, "its firmware failed"),
    (136, "a link to another GPU does not come up"),
    (140, "bad memory that was not dealt with"),
    (143, "it does not start"),
    (156, "a part of it is to be taken out of use"),
    (158, "it does not answer in time"),
];
/// Those of them that end nothing, or only the program that met them: a row is to be replaced at the next reset and is not
/// used until then, or an error in memory has gone no further.
const SURVIVED: [u64; 2] = [63, 94];
/// Those after which the catalogue has the program restarted and looked at. Not 45: a program that was killed leaves that
/// behind.
const FAULTS: &Xids = &[
    (8, "it was stopped by its watchdog"),
    (11, "damaged commands"),
    (13, "an exception of a kernel"),
    (25, "damaged commands"),
    (31, "an address that is not the program's"),
    (32, "damaged commands on the bus"),
    (39, "an exception of a copy"),
    (43, "a program was stopped"),
    (69, "a command that it does not know"),
];

/// What became of the GPUs between two looks, in which the driver told of these events; by their place.
#[must_use]
pub fn between(before: &Inventory, after: &Inventory, xids: &[Xid]) -> Vec<GpuFacts> {
    let now = |then: &Gpu| after.gpus.iter().find(|now| now.uuid == then.uuid);
    let then = |now: &Gpu| before.gpus.iter().find(|then| then.uuid == now.uuid);
    let gone = before.gpus.iter().filter(|gpu| now(gpu).is_none());
    let gone = gone.map(|gpu| facts(Some(gpu), &Gpu { lost: true, ..gpu.clone() }, xids));
    let there = after.gpus.iter().map(|gpu| facts(then(gpu), gpu, xids));
    let mut found: Vec<_> = there.chain(gone).collect();
    // Of one that does not say which it is, nothing is known where nobody had looked before either.
    let unknown = after.silent.len().saturating_sub(found.iter().filter(|gpu| gpu.lost).count());
    found.extend((0..unknown).map(|_| GpuFacts { lost: true, ..GpuFacts::default() }));
    found
}

fn facts(then: Option<&Gpu>, now: &Gpu, xids: &[Xid]) -> GpuFacts {
    let risen = |count: fn(&Gpu) -> Option<u64>| {
        let (before, after) = then.and_then(count).zip(count(now))?;
        Some(after.saturating_sub(before))
    };
    let since_loaded = risen(|gpu| gpu.ecc?.uncorrected);
    let came = |is_so: fn(&Gpu) -> bool| is_so(now) && then.is_some_and(|then| !is_so(then));
    GpuFacts {
        uuid: Some(now.uuid.clone()),
        name: Some(now.name.clone()).filter(|name| !name.is_empty()).or_else(|| Some(then?.name.clone())),
        memory_bytes: [Some(now), then]
            .into_iter()
            .flatten()
            .map(|gpu| gpu.memory.total_bytes)
            .find(|bytes| *bytes > 0),
        memory_used_bytes: (now.memory.total_bytes > 0).then(|| now.memory.used_bytes()),
        // A reset sets the first back, not the second.
        new_uncorrected: since_loaded.max(risen(|gpu| gpu.ecc?.uncorrected_ever)).unwrap_or(0),
        rows_pending: came(|gpu| gpu.remapped_rows.is_some_and(|rows| rows.pending)),
        rows_failed: came(|gpu| gpu.remapped_rows.is_some_and(|rows| rows.failed)),
        lost: now.lost,
        xids: xids.iter().filter(|xid| xid.uuid.as_ref() == Some(&now.uuid)).map(|xid| xid.number).collect(),
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
            self.xid_among(HARDWARE),
            self.rows_pending.then(|| "has to replace rows of its memory".to_owned()),
        ];
        let damage: Vec<_> = damage.into_iter().flatten().collect();
        if !damage.is_empty() {
            return Some(Trouble::Hardware(format!("{} {}", self.called(), damage.join(" and "))));
        }
        self.xid_among(FAULTS).map(|xid| Trouble::Fault(format!("{} {xid}", self.called())))
    }

    /// Whether what runs on it must not go on: what it computes, or would keep for another attempt, may be wrong.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        let is_fatal = |xid: &u64| words(HARDWARE, *xid).is_some() && !SURVIVED.contains(xid);
        let told = self.xids.iter().any(is_fatal);
        self.lost || self.new_uncorrected > 0 || self.rows_failed || told
    }

    fn xid_among(&self, known: &Xids) -> Option<String> {
        let told = |xid: &u64| Some(format!("has told of Xid {xid} ({})", words(known, *xid)?));
        self.xids.iter().find_map(told)
    }

    fn called(&self) -> String {
        let name = self.name.as_deref().unwrap_or("a GPU");
        self.uuid.as_ref().map_or_else(|| name.to_owned(), |uuid| format!("{name} ({uuid})"))
    }
}

fn words(known: &Xids, xid: u64) -> Option<&'static str> {
    known.iter().find(|(number, _)| *number == xid).map(|(_, words)| *words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Ecc, RemappedRows};

    fn gpu(index: u32) -> Gpu {
        Gpu {
            index,
            uuid: format!("GPU-{index}"),
            name: "NVIDIA H200".into(),
            ecc: Some(Ecc { enabled: true, corrected: Some(0), uncorrected: Some(2), uncorrected_ever: Some(5) }),
            remapped_rows: Some(RemappedRows::default()),
            ..Gpu::default()
        }
    }

    fn with_errors(uncorrected: u64, uncorrected_ever: u64) -> Gpu {
        let ecc = Ecc { uncorrected: Some(uncorrected), uncorrected_ever: Some(uncorrected_ever), ..Ecc::default() };
        Gpu { ecc: Some(ecc), ..gpu(0) }
    }

    fn with_rows(pending: bool, failed: bool) -> Gpu {
        Gpu { remapped_rows: Some(RemappedRows { pending, failed, ..RemappedRows::default() }), ..gpu(0) }
    }

    fn look(gpus: impl IntoIterator<Item = Gpu>) -> Inventory {
        Inventory { driver: Some("580".into()), gpus: gpus.into_iter().collect(), ..Inventory::default() }
    }

    fn xid(index: u32, number: u64) -> Xid {
        Xid { uuid: Some(format!("GPU-{index}")), number }
    }

    /// What is the matter with the first of two GPUs.
    fn trouble(now: Gpu, xids: &[Xid]) -> Option<Trouble> {
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
        hardware(trouble(with_errors(4, 5), &[]), "2 new errors");
        hardware(trouble(with_errors(0, 6), &[]), "1 new errors");
        hardware(trouble(with_rows(false, true), &[]), "no rows");
        hardware(trouble(with_rows(true, false), &[]), "replace rows");
        hardware(trouble(gpu(0), &[xid(0, 31), xid(0, 79)]), "Xid 79");
        assert!(matches!(trouble(gpu(0), &[xid(0, 31)]), Some(Trouble::Fault(told)) if told.contains("Xid 31")));
        assert_eq!(trouble(gpu(0), &[xid(0, 45)]), None, "what a kill leaves behind");
    }

    #[test]
    fn what_runs_survives_bad_memory_that_was_dealt_with_and_nothing_else() {
        let fatal = |now: Gpu, xids: &[Xid]| between(&look([gpu(0)]), &look([now]), xids)[0].is_fatal();
        assert!(!fatal(gpu(0), &[xid(0, 63), xid(0, 31)]) && !fatal(with_rows(true, false), &[]));
        assert!(!fatal(gpu(0), &[xid(0, 94)]), "the error is contained");
        for survived in [63, 94] {
            assert!(matches!(trouble(gpu(0), &[xid(0, survived)]), Some(Trouble::Hardware(_))), "Xid {survived}");
        }
        for reset in [46, 62, 79, 95, 119, 120, 140, 158] {
            assert!(fatal(gpu(0), &[xid(0, reset)]), "Xid {reset}");
        }
        assert!(fatal(gpu(0), &[xid(0, 63), xid(0, 48)]) && fatal(with_errors(3, 6), &[]));
        assert!(fatal(with_rows(true, true), &[]) && fatal(Gpu { lost: true, ..gpu(0) }, &[]));
    }

    #[test]
    fn a_gpu_that_does_not_answer_or_is_not_there_any_more_is_lost() {
        let silent = |places: &[u32], gpus: Vec<Gpu>| Inventory { silent: places.to_vec(), ..look(gpus) };
        let facts = between(&look([gpu(0)]), &silent(&[0], vec![]), &[]);
        let lost = |facts: &[GpuFacts]| facts.iter().map(|gpu| (gpu.uuid.clone(), gpu.lost)).collect::<Vec<_>>();
        let named = |index: u32| Some(format!("GPU-{index}"));
        assert_eq!(lost(&facts), [(named(0), true)], "it is known from before");
        let facts = between(&look([gpu(0), gpu(1)]), &look([gpu(0)]), &[]);
        assert_eq!(lost(&facts), [(named(0), false), (named(1), true)]);
        // Places are given out anew when one is gone.
        let moved = Gpu { index: 0, ..gpu(1) };
        let facts = between(&look([gpu(0), gpu(1)]), &look([moved]), &[]);
        assert_eq!(lost(&facts), [(named(1), false), (named(0), true)]);
        assert_eq!(lost(&between(&Inventory::default(), &silent(&[3], vec![]), &[])), [(None, true)]);
    }

    #[test]
    fn where_nobody_looked_before_nothing_is_new_but_what_is_lost() {
        let bad = Gpu { remapped_rows: with_rows(true, true).remapped_rows, ..with_errors(9, 9) };
        assert_eq!(between(&Inventory::default(), &look([bad.clone()]), &[])[0].trouble(), None);
        let lost = Gpu { lost: true, ..bad };
        assert!(between(&Inventory::default(), &look([lost]), &[])[0].trouble().is_some());
    }
}
