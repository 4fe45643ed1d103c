//! What is free of a host at some moment, and where a job would go in it.

use std::collections::HashMap;

use super::{Capacity, GpuNeed, Host, Need, Running, Shortage};

/// Of the memory of a unit, the part that other programs may hold while it still counts as whole: what a display takes.
const FOREIGN_PART: u64 = 16;

/// What is free of a host.
#[derive(Debug, Clone)]
pub(super) struct Room<'a> {
    host: &'a Host,
    used: Capacity,
    /// As many as the host has units.
    spots: Vec<Spot>,
}

/// What jobs have of a unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Spot {
    /// Whether one has it to itself.
    owned: bool,
    sharers: u32,
    /// What these have of its memory.
    shared_bytes: u64,
}

impl<'a> Room<'a> {
    /// A host that nothing runs on, but for what other programs hold of it.
    pub(super) fn empty(host: &'a Host) -> Self {
        Self { host, used: Capacity::default(), spots: vec![Spot::default(); host.units.len()] }
    }

    /// What is left while these run.
    pub(super) fn with(host: &'a Host, running: &[Running]) -> Self {
        let mut room = Self::empty(host);
        let index: HashMap<&str, usize> =
            host.units.iter().enumerate().map(|(at, of)| (of.unit.uuid.as_str(), at)).collect();
        for job in running {
            let spots: Vec<_> = job.units.iter().filter_map(|uuid| index.get(uuid.as_str()).copied()).collect();
            room.take(&job.need, &spots);
        }
        room
    }

    /// Indices of units; those are left out that the host no longer offers.
    pub(super) fn spots_of(&self, uuids: &[String]) -> Vec<usize> {
        let at = |uuid: &String| self.host.units.iter().position(|of| of.unit.uuid == *uuid);
        uuids.iter().filter_map(at).collect()
    }

    /// UUIDs of units.
    pub(super) fn names(&self, spots: &[usize]) -> Vec<String> {
        spots.iter().map(|&at| self.host.units[at].unit.uuid.clone()).collect()
    }

    /// Where a job would go, by the indices of its units, or what is lacking first.
    pub(super) fn place(&self, need: &Need) -> Result<Vec<usize>, Shortage> {
        let spots = match need.gpus {
            GpuNeed::Nothing => Vec::new(),
            GpuNeed::Own { count: 1, least_bytes } => vec![self.smallest(least_bytes)?],
            GpuNeed::Own { count, least_bytes } => self.alike(count, least_bytes)?,
            GpuNeed::Share { bytes } => vec![self.fullest(bytes)?],
        };
        self.host.capacity.less(self.used).fits(need.capacity)?;
        if need.disk_bytes > self.host.disk_bytes {
            return Err(Shortage::Disk { needs: need.disk_bytes, free: self.host.disk_bytes });
        }
        Ok(spots)
    }

    /// Memory of a unit that nobody has.
    fn free_bytes(&self, at: usize) -> u64 {
        let of = &self.host.units[at];
        of.unit.memory_bytes.saturating_sub(of.foreign_bytes).saturating_sub(self.spots[at].shared_bytes)
    }

    /// The smallest unit that is free as a whole and large enough.
    fn smallest(&self, least_bytes: u64) -> Result<usize, Shortage> {
        let free = (0..self.spots.len()).filter(|&at| self.is_whole(at) && self.free_bytes(at) >= least_bytes);
        let found = free.min_by_key(|&at| self.host.units[at].unit.memory_bytes);
        found.ok_or_else(|| Shortage::Gpus { needs: 1, free: 0, foreign: self.spoilt(least_bytes) })
    }

    /// Free GPUs of one name, of the smallest that are large enough and of which there are enough.
    fn alike(&self, count: u32, least_bytes: u64) -> Result<Vec<usize>, Shortage> {
        let mut kinds: Vec<(u64, &str, Vec<usize>)> = Vec::new();
        for (at, of) in self.host.units.iter().enumerate() {
            let is_slice = of.unit.uuid != of.unit.gpu;
            if is_slice || !self.is_whole(at) || self.free_bytes(at) < least_bytes {
                continue;
            }
            match kinds.iter_mut().find(|(_, name, _)| *name == of.name) {
                Some((_, _, members)) => members.push(at),
                None => kinds.push((of.unit.memory_bytes, &of.name, vec![at])),
            }
        }
        let most = kinds.iter().map(|(_, _, members)| members.len()).max().unwrap_or(0) as u32;
        let enough = kinds.into_iter().filter(|(_, _, members)| members.len() >= count as usize);
        match enough.min_by_key(|(bytes, ..)| *bytes) {
            Some((_, _, mut members)) => {
                members.truncate(count as usize);
                Ok(members)
            }
            None => Err(Shortage::Gpus { needs: count, free: most, foreign: self.spoilt(least_bytes) }),
        }
    }

    /// The unit with room for one more that would be left with the least: so that whole ones stay whole.
    fn fullest(&self, bytes: u64) -> Result<usize, Shortage> {
        let open = |at: &usize| !self.spots[*at].owned && self.spots[*at].sharers < self.host.sharers;
        let open: Vec<usize> = (0..self.spots.len()).filter(open).collect();
        let fitting = open.iter().copied().filter(|&at| self.free_bytes(at) >= bytes);
        let found = fitting.min_by_key(|&at| (self.spots[at].sharers == 0, self.free_bytes(at)));
        found.ok_or_else(|| {
            let free = open.iter().map(|&at| self.free_bytes(at)).max().unwrap_or(0);
            Shortage::GpuMemory { needs: bytes, free }
        })
    }

    /// Units that would be free and large enough but for other programs.
    fn spoilt(&self, least_bytes: u64) -> u32 {
        let spoilt = |&at: &usize| {
            let (spot, of) = (&self.spots[at], &self.host.units[at]);
            let unused = !spot.owned && spot.sharers == 0;
            let large = of.unit.memory_bytes >= least_bytes;
            unused && large && (!self.is_whole(at) || self.free_bytes(at) < least_bytes)
        };
        (0..self.spots.len()).filter(spoilt).count() as u32
    }

    /// Whether a job could have the unit to itself.
    fn is_whole(&self, at: usize) -> bool {
        let (spot, of) = (&self.spots[at], &self.host.units[at]);
        let foreign_little = of.foreign_bytes <= of.unit.memory_bytes / FOREIGN_PART;
        !spot.owned && spot.sharers == 0 && foreign_little
    }

    pub(super) fn take(&mut self, need: &Need, spots: &[usize]) {
        self.used = self.used.and(need.capacity);
        for &at in spots {
            let spot = &mut self.spots[at];
            match need.gpus {
                GpuNeed::Share { bytes } => {
                    spot.shared_bytes += bytes;
                    spot.sharers += 1;
                }
                GpuNeed::Nothing | GpuNeed::Own { .. } => spot.owned = true,
            }
        }
    }

    pub(super) fn give_back(&mut self, need: &Need, spots: &[usize]) {
        self.used = self.used.less(need.capacity);
        for &at in spots {
            let spot = &mut self.spots[at];
            match need.gpus {
                GpuNeed::Share { bytes } => {
                    spot.shared_bytes = spot.shared_bytes.saturating_sub(bytes);
                    spot.sharers = spot.sharers.saturating_sub(1);
                }
                GpuNeed::Nothing | GpuNeed::Own { .. } => spot.owned = false,
            }
        }
    }

    /// Where a job would go that must find the same room here and there.
    pub(super) fn place_in_both(&self, other: &Self, need: &Need) -> Option<Vec<usize>> {
        let both = |(a, b): (&Spot, &Spot)| Spot {
            owned: a.owned || b.owned,
            sharers: a.sharers.max(b.sharers),
            shared_bytes: a.shared_bytes.max(b.shared_bytes),
        };
        let used = Capacity {
            cpu_millis: self.used.cpu_millis.max(other.used.cpu_millis),
            memory_bytes: self.used.memory_bytes.max(other.used.memory_bytes),
        };
        let spots = self.spots.iter().zip(&other.spots).map(both).collect();
        Self { host: self.host, used, spots }.place(need).ok()
    }
}
