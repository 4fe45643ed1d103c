//! What the GPUs of one training tell each other: the sums of their gradients.
//!
//! One thread speaks for all ranks, after each of them has computed what is to be summed and said so: whatever goes
//! wrong before is told by the rank that it goes wrong on, and no other is left waiting for it in the middle of a sum.
//! What goes wrong within a sum ends it for all of them, and so does time.

use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use super::device::Device;
use super::error::{CudaError, Result};
use super::memory::Buffer;
use super::nccl::{self, Communicator, Nccl};

/// How long the GPUs may take to find each other, or to sum a model's gradients. Both are a matter of seconds.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked whether they are done.
const POLL: Duration = Duration::from_micros(50);

/// A clique of GPUs. None of NCCL's calls blocks it.
pub struct Exchange {
    nccl: &'static Nccl,
    /// Nobody, once it has been broken off.
    ranks: Vec<Rank>,
    patience: Duration,
}

struct Rank {
    device: Device,
    /// In a place of its own, where NCCL finds it again while it gets ready.
    communicator: Box<AtomicPtr<c_void>>,
}

impl Rank {
    fn communicator(&self) -> Communicator {
        self.communicator.load(Ordering::Acquire)
    }
}

impl Exchange {
    /// Makes the GPUs known to each other, in the order of their ranks.
    pub fn open(devices: &[Device], patience: Duration) -> Result<Self> {
        const TRIED: &str = "making the GPUs known to each other";
        let mut exchange = Self { nccl: nccl::nccl()?, ranks: Vec::with_capacity(devices.len()), patience };
        let id = exchange.nccl.unique_id()?;
        let (nccl, ranks) = (exchange.nccl, &mut exchange.ranks);
        nccl.group(TRIED, || {
            for (rank, device) in devices.iter().enumerate() {
                device.bind()?;
                let communicator = Box::new(AtomicPtr::new(std::ptr::null_mut()));
                // SAFETY: it stays in its box until everybody is ready, or has been told to leave off.
                unsafe { nccl.join(id, rank, devices.len(), &communicator)? };
                ranks.push(Rank { device: device.clone(), communicator });
            }
            Ok(())
        })?;
        exchange.settle(TRIED)?;
        Ok(exchange)
    }

    /// Replaces each rank's values by the sums over all ranks, the same ones to the last bit for each. Returns when that
    /// is done. `of_ranks` are as many buffers of the same lengths for every rank.
    pub fn sum(&mut self, of_ranks: &mut [&mut [Buffer<f32>]]) -> Result<()> {
        const TRIED: &str = "summing gradients";
        assert_eq!(of_ranks.len(), self.ranks.len(), "buffers of as many ranks as there are, unless it was broken off");
        let (nccl, ranks) = (self.nccl, &self.ranks);
        let asked = nccl.group(TRIED, || {
            for (rank, buffers) in ranks.iter().zip(of_ranks) {
                rank.device.bind()?;
                for buffer in buffers.iter_mut().filter(|buffer| !buffer.is_empty()) {
                    let (values, stream) = (buffer.view_mut(), rank.device.stream());
                    // SAFETY: the buffer is lent until the streams are done, or have been told to leave off.
                    unsafe { nccl.sum(values.pointer, values.len(), rank.communicator(), stream)? };
                }
            }
            Ok(())
        });
        asked.inspect_err(|_| self.break_off())?;
        self.settle(TRIED)
    }

    /// Waits until every rank has done what was asked of it. If one of them cannot, none goes on.
    fn settle(&mut self, tried: &'static str) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.is_settled(tried) {
                Ok(true) => return Ok(()),
                Ok(false) if began.elapsed() < self.patience => std::thread::sleep(POLL),
                Ok(false) => {
                    self.break_off();
                    return Err(CudaError::ExchangeStuck { tried, seconds: self.patience.as_secs() });
                }
                Err(error) => {
                    self.break_off();
                    return Err(error);
                }
            }
        }
    }

    fn is_settled(&self, tried: &'static str) -> Result<bool> {
        for rank in &self.ranks {
            match self.nccl.state(rank.communicator()) {
                nccl::SUCCESS => {}
                // What it has been asked may not even be in its stream yet.
                nccl::IN_PROGRESS => return Ok(false),
                failed => return Err(self.nccl.error(failed, tried)),
            }
        }
        self.ranks.iter().try_fold(true, |all, rank| Ok(all && rank.device.is_done()?))
    }

    /// Kernels that wait for other GPUs leave off, whatever they wait for.
    fn break_off(&mut self) {
        for rank in self.ranks.drain(..) {
            // A GPU that cannot be spoken to any more has nothing to leave off.
            let _ = rank.device.bind();
            self.nccl.let_go(rank.communicator());
        }
    }
}

/// Nothing is under way by then, so that there is nothing to wait for, as NCCL's gentler way to end would.
impl Drop for Exchange {
    fn drop(&mut self) {
        self.break_off();
    }
}
