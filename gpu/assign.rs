//! Which queued jobs can start with what is free.

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

/// How many jobs from the head of the line can start now. The line is never overtaken: a job that does not fit holds
/// back those behind it, so that a large one is not starved by many small ones.
#[must_use]
pub fn admit(mut free: Capacity, line: &[Capacity]) -> usize {
    line.iter()
        .take_while(|need| {
            let fits = free.fits(**need).is_ok();
            free = free.less(**need);
            fits
        })
        .count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capacity(cpu_millis: u64, memory_bytes: u64) -> Capacity {
        Capacity { cpu_millis, memory_bytes }
    }

    #[test]
    fn a_job_that_does_not_fit_holds_back_those_behind_it() {
        let line = [capacity(1000, 10), capacity(4000, 10), capacity(1000, 10)];
        assert_eq!(admit(capacity(3000, 100), &line), 1);
    }

    #[test]
    fn the_shortage_is_told_in_numbers() {
        let free = capacity(2000, 100);
        assert_eq!(free.fits(capacity(1000, 101)), Err(Shortage::Memory { needs: 101, free: 100 }));
        assert_eq!(free.fits(capacity(2001, 1)), Err(Shortage::Cpu { needs: 2001, free: 2000 }));
    }

    proptest! {
        #[test]
        fn never_more_is_given_than_is_free(
            free in (0..10_000u64, 0..10_000u64),
            line in proptest::collection::vec((1..4_000u64, 1..4_000u64), 0..20),
        ) {
            let free = capacity(free.0, free.1);
            let line: Vec<_> = line.into_iter().map(|(cpu, memory)| capacity(cpu, memory)).collect();
            let admitted = admit(free, &line);
            let cpu: u64 = line[..admitted].iter().map(|need| need.cpu_millis).sum();
            let memory: u64 = line[..admitted].iter().map(|need| need.memory_bytes).sum();
            prop_assert!(cpu <= free.cpu_millis && memory <= free.memory_bytes);
            if let Some(next) = line.get(admitted) {
                prop_assert!(free.less(capacity(cpu, memory)).fits(*next).is_err());
            }
        }
    }
}
