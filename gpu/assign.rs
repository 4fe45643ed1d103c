//! Which queued jobs can start with what is free, on which GPUs, and why the others cannot yet.
//!
//! [`assign`] is a pure function from what a host has, what runs there and who waits, to who starts. The line is ranked
//! by [`order`]: priority, then a fair share for every owner, then submission; and whoever has waited too long comes
//! first. The first job that does not fit is the *head* of the line. It is promised the moment at which enough will have
//! ended, by the time limits of what runs, and those behind it start only on what it leaves: backfilling as in EASY
//! (Lifka, "The ANL/IBM SP Scheduling System", 1995; Mu'alem and Feitelson, IEEE TPDS 12(6), 2001). As a time limit is
//! kept, and not guessed, the head never starts later than it would have without them.
//!
//! Nothing that runs is ever interrupted for the sake of something else.

use std::collections::HashMap;

use drydock_spec::{JobId, Owner, Priority};

pub mod order;
pub mod outlook;
mod room;
mod share;

pub use outlook::{Ends, Outlook, outlook};
use room::Room;
pub use share::{Standing, share_of};

use crate::inventory::{Gpu, Inventory, Unit};

/// CPU and memory, of a host or for a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

/// Why something does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// Thousandths of a CPU.
    Cpu { needs: u64, free: u64 },
    /// Bytes.
    Memory { needs: u64, free: u64 },
    /// Bytes on the host's disk.
    Disk { needs: u64, free: u64 },
    /// Units that would do; `foreign` more would if other programs than jobs did not hold memory of them.
    Gpus { needs: u32, free: u32, foreign: u32 },
    /// Bytes of one GPU that is shared: the most that any has free for one more.
    GpuMemory { needs: u64, free: u64 },
}

impl Capacity {
    /// What is left when `used` is taken; nothing where more is taken than there is.
    #[must_use]
    pub fn less(self, used: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(used.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(used.memory_bytes),
        }
    }

    /// What there is when `back` is given back.
    #[must_use]
    fn and(self, back: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(back.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(back.memory_bytes),
        }
    }

    /// Whether `need` fits into what is free here.
    pub fn fits(self, need: Self) -> Result<(), Shortage> {
        if need.memory_bytes > self.memory_bytes {
            return Err(Shortage::Memory { needs: need.memory_bytes, free: self.memory_bytes });
        }
        if need.cpu_millis > self.cpu_millis {
            return Err(Shortage::Cpu { needs: need.cpu_millis, free: self.cpu_millis });
        }
        Ok(())
    }
}

/// What jobs may use of a host, all together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Host {
    pub capacity: Capacity,
    /// Free on its disk now. What runs has its room already, and ends without giving any back.
    pub disk_bytes: u64,
    pub units: Vec<HostUnit>,
    /// Jobs that may share a unit.
    pub sharers: u32,
}

impl Host {
    /// Whether a job could start if nothing else ran.
    pub fn takes(&self, need: &Need) -> Result<(), Shortage> {
        Room::empty(self).place(need).map(drop)
    }
}

/// A GPU or slice as jobs find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostUnit {
    pub unit: Unit,
    /// Units of one name are alike, such as all `NVIDIA H200`.
    pub name: String,
    /// Memory that other programs than jobs hold. Of which slice one holds it nobody tells.
    pub foreign_bytes: u64,
}

impl HostUnit {
    /// Everything of a host that jobs can be given.
    #[must_use]
    pub fn all(inventory: &Inventory) -> Vec<Self> {
        let one = |unit: Unit| {
            let gpu = inventory.gpus.iter().find(|gpu| gpu.uuid == unit.gpu);
            let whole = gpu.filter(|_| unit.gpu == unit.uuid);
            let foreign_bytes = whole.map_or(0, foreign_bytes);
            Self { name: gpu.map(|gpu| gpu.name.clone()).unwrap_or_default(), unit, foreign_bytes }
        };
        inventory.units().into_iter().map(one).collect()
    }
}

/// Memory of the GPU that programs hold which are not jobs. A process of which only the number is known may be a job's:
/// that is what a gateway sees that is kept from the host's processes.
fn foreign_bytes(gpu: &Gpu) -> u64 {
    let foreign = gpu.processes.iter().filter(|process| process.job.is_none() && process.name.is_some());
    foreign.filter_map(|process| process.memory_bytes).sum()
}

/// What a job takes while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    pub capacity: Capacity,
    /// The most that it may write.
    pub disk_bytes: u64,
    pub gpus: GpuNeed,
}

/// What a job takes of the host's GPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GpuNeed {
    /// It computes on the CPU.
    #[default]
    Nothing,
    /// So many units that nobody else has, each with so much memory. One may be a slice, the smallest that will do;
    /// several are whole GPUs of one name, as they work in step.
    Own { count: u32, least_bytes: u64 },
    /// So much memory of one unit, beside others that share it.
    Share { bytes: u64 },
}

/// A job that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    pub job: JobId,
    pub owner: Owner,
    pub need: Need,
    /// UUIDs of the units that it has.
    pub units: Vec<String>,
    pub since_ms: i64,
    /// When it will have ended, whatever it does.
    pub ends_by_ms: i64,
    /// When it is expected to end, where somebody can tell.
    pub expected_end_ms: Option<i64>,
}

/// A job in line that waits for nothing but its turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    pub job: JobId,
    pub owner: Owner,
    pub priority: Priority,
    /// In order of submission. A job that is tried again keeps its place.
    pub position: i64,
    pub submitted_ms: i64,
    pub need: Need,
    /// The longest that it may run.
    pub longest_ms: i64,
    /// How long it is expected to run, where somebody can tell.
    pub expected_ms: Option<i64>,
}

/// How the line is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Time after which what an owner has had counts half.
    pub half_life_ms: i64,
    /// How long an owner's oldest job waits before it goes to the front of the line.
    pub patience_ms: i64,
}

/// What happens now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In the order in which they start.
    pub starts: Vec<Start>,
    /// Everybody else, in order of rank.
    pub holds: Vec<(JobId, Hold)>,
}

/// A job that starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub job: JobId,
    /// UUIDs of the units that it gets.
    pub units: Vec<String>,
}

/// Why a job does not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It comes next, and this is not free. It starts by the promised moment, if it is known.
    Lacks { shortage: Shortage, promised_ms: Option<i64> },
    /// So many others come first and leave too little. `by_share`: some of them came later, but their owners have had less.
    Behind { jobs: u64, by_share: bool },
    /// There is enough for it, but that is kept for the head of the line, from the moment on that is told if it is known.
    Kept { head: JobId, from_ms: Option<i64> },
    /// The whole host, with nothing else on it, is too small.
    TooLarge { shortage: Shortage },
}

/// Who starts now, and why the others do not.
#[must_use]
pub fn assign(
    host: &Host,
    running: &[Running],
    line: &[Waiting],
    owners: &HashMap<Owner, Standing>,
    policy: &Policy,
    now_ms: i64,
) -> Plan {
    let (line, mut plan) = without_the_too_large(host, line);
    let mut room = Room::with(host, running);
    let mut busy: Vec<Busy> = running.iter().map(|job| Busy::of(job, &room, now_ms)).collect();
    let mut head: Option<Head<'_>> = None;
    for (before, ranked) in order::ranked(host, running, &line, owners, policy, now_ms).into_iter().enumerate() {
        let waiting = ranked.waiting;
        let placed = room.place(&waiting.need);
        let allowed = match (&head, &placed) {
            (None, Ok(spots)) => Some(spots.clone()),
            // Only what the head leaves, unless it is given back in time.
            (Some(head), Ok(spots)) => head.leaves(&room, waiting, spots, now_ms),
            (_, Err(_)) => None,
        };
        if let Some(spots) = allowed {
            room.take(&waiting.need, &spots);
            let ends_by_ms = now_ms.saturating_add(waiting.longest_ms);
            if let Some(head) = &mut head {
                head.let_pass(&waiting.need, &spots, ends_by_ms);
            }
            plan.starts.push(Start { job: waiting.job, units: room.names(&spots) });
            busy.push(Busy { need: waiting.need, spots, ends_by_ms });
            continue;
        }
        let jobs = (before - plan.starts.len()) as u64;
        let hold = match (&head, placed) {
            (None, Err(shortage)) => {
                let promised = Head::of(waiting, &room, &mut busy);
                let promised_ms = promised.from_ms;
                head = Some(promised);
                Hold::Lacks { shortage, promised_ms }
            }
            (Some(head), Ok(_)) => Hold::Kept { head: head.job, from_ms: head.from_ms },
            _ => Hold::Behind { jobs, by_share: ranked.by_share },
        };
        plan.holds.push((waiting.job, hold));
    }
    plan
}

/// Who could start on an empty host, and why the others could not: those stand in nobody's way. Room on the disk comes
/// and goes, and is waited for.
fn without_the_too_large<'a>(host: &Host, line: &'a [Waiting]) -> (Vec<&'a Waiting>, Plan) {
    let empty = Room::empty(host);
    let mut plan = Plan::default();
    let able = line.iter().filter(|waiting| match empty.place(&Need { disk_bytes: 0, ..waiting.need }) {
        Ok(_) => true,
        Err(shortage) => {
            plan.holds.push((waiting.job, Hold::TooLarge { shortage }));
            false
        }
    });
    (able.collect(), plan)
}

/// What is in use, and until when at most.
struct Busy {
    need: Need,
    /// Indices of its units.
    spots: Vec<usize>,
    ends_by_ms: i64,
}

impl Busy {
    fn of(job: &Running, room: &Room<'_>, now_ms: i64) -> Self {
        // Who is past its limit is being ended.
        Self { need: job.need, spots: room.spots_of(&job.units), ends_by_ms: job.ends_by_ms.max(now_ms) }
    }
}

/// The first job that does not fit, and what is promised to it.
struct Head<'a> {
    job: JobId,
    /// When it will start at the latest; nothing if it waits for what no job gives back.
    from_ms: Option<i64>,
    /// What will be free then, without what it takes.
    rest: Option<Room<'a>>,
}

impl<'a> Head<'a> {
    /// Goes through the ends of what runs, the earliest first, until there is enough.
    fn of(waiting: &Waiting, now: &Room<'a>, busy: &mut [Busy]) -> Self {
        busy.sort_by_key(|busy| busy.ends_by_ms);
        let mut then = now.clone();
        for (at, ended) in busy.iter().enumerate() {
            then.give_back(&ended.need, &ended.spots);
            // Those that end together do so before anybody looks.
            let more = busy.get(at + 1).is_some_and(|next| next.ends_by_ms == ended.ends_by_ms);
            if more {
                continue;
            }
            if let Ok(spots) = then.place(&waiting.need) {
                then.take(&waiting.need, &spots);
                return Self { job: waiting.job, from_ms: Some(ended.ends_by_ms), rest: Some(then) };
            }
        }
        Self { job: waiting.job, from_ms: None, rest: None }
    }

    /// Where somebody from behind may start without being in the way; `spots` is where there is room now.
    fn leaves(&self, now: &Room<'a>, waiting: &Waiting, spots: &[usize], now_ms: i64) -> Option<Vec<usize>> {
        let (from_ms, rest) = (self.from_ms?, self.rest.as_ref()?);
        if now_ms.saturating_add(waiting.longest_ms) <= from_ms {
            return Some(spots.to_vec());
        }
        now.place_in_both(rest, &waiting.need)
    }

    /// Somebody from behind has started who ends then at the latest.
    fn let_pass(&mut self, need: &Need, spots: &[usize], ends_by_ms: i64) {
        if let (Some(from_ms), Some(rest)) = (self.from_ms, &mut self.rest)
            && ends_by_ms > from_ms
        {
            rest.take(need, spots);
        }
    }
}

#[cfg(test)]
mod tests;
