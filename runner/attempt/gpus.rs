//! The GPUs of an attempt: what it holds of them is said among its reports, and what became of them is told at its end.

use std::time::Duration;

use drydock_spec::report::GpuReading;
use drydock_spec::{Outcome, Report};

use super::{Attempts, Stop, hold};
use crate::diagnose::{Ending, diagnose};
use crate::gpus::readings::readings;
use crate::gpus::{Attended, Mark};
use crate::store::{Lease, StoreError};

/// How often what an attempt holds is said.
const SAY: Duration = Duration::from_secs(10);

/// GPUs since an attempt began with them.
pub(super) struct Since {
    pub(super) mark: Mark,
    /// They are looked at more often meanwhile.
    _attended: Option<Attended>,
}

/// What was read of an attempt's GPUs.
#[derive(Debug, Default)]
pub(super) struct Readings {
    /// With the most that was ever held.
    pub(super) newest: Vec<GpuReading>,
    /// The look that it is from.
    looked_ms: Option<i64>,
    /// When it was said, by the steady clock, and what.
    said_ms: Option<i64>,
    said: Vec<GpuReading>,
}

impl Attempts {
    /// From here on it is told what becomes of the attempt's GPUs.
    pub(super) async fn gpus_from_here(&self, lease: &Lease) -> Result<Since, Stop> {
        if lease.row().gpus.is_empty() {
            return Ok(Since { mark: self.gpus.mark(), _attended: None });
        }
        self.asked(lease, self.gpus.look_once()).await?;
        Ok(Since { mark: self.gpus.mark(), _attended: Some(self.gpus.attend()) })
    }

    /// Adds to an ending what became of the GPUs that the worker computed on.
    pub(super) async fn add_gpus(&self, lease: &Lease, since: &Since, mut ending: Ending) -> Result<Ending, Stop> {
        let own = &lease.row().gpus;
        // What befalls a GPU while another program computes on it is nothing to a worker on the CPU.
        let is_on_gpu = !own.is_empty() || lease.started().await?.is_some_and(|said| said.device.starts_with("cuda"));
        if !is_on_gpu || !self.gpus.can_look() || diagnose(&ending) == Outcome::Succeeded {
            return Ok(ending);
        }
        ending.gpus = self.asked(lease, self.gpus.account(&since.mark, own)).await?;
        ending.has_gpus = !own.is_empty();
        ending.gpu_lost = self.gpus.now().fatal(own, &since.mark).map(str::to_owned);
        Ok(ending)
    }

    /// What the driver answers, which may take it long: the lease is kept meanwhile.
    async fn asked<T>(&self, lease: &Lease, answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, Stop> {
        tokio::select! {
            answer = hold::renewing(lease, self.lease_ms, answer) => Ok(answer??),
            () = self.shutdown.cancelled() => Err(Stop::Detached),
        }
    }
}

impl Readings {
    /// Those that an earlier gateway has said of the attempt.
    pub(super) async fn of(lease: &Lease) -> Result<Self, StoreError> {
        let said = if lease.row().gpus.is_empty() { Vec::new() } else { lease.gpus_said().await? };
        Ok(Self { newest: said.clone(), said, ..Self::default() })
    }

    /// Reads what the newest look tells, and says it when it is time.
    pub(super) async fn go_on(&mut self, attempts: &Attempts, lease: &mut Lease) -> Result<(), StoreError> {
        if lease.row().gpus.is_empty() {
            return Ok(());
        }
        let known = attempts.gpus.now();
        if let (Ok(look), true) = (&known.gpus, known.looked_ms > self.looked_ms) {
            self.looked_ms = known.looked_ms;
            let own = (lease.job().id, lease.attempt());
            self.newest = readings(look, &lease.row().gpus, own, &self.newest);
        }
        let now = attempts.store.clock().steady_ms();
        let is_time = self.said_ms.is_none_or(|then| u128::from((now - then).unsigned_abs()) >= SAY.as_millis());
        if !is_time {
            return Ok(());
        }
        self.said_ms = Some(now);
        self.say(lease).await
    }

    /// Says what was not said yet.
    pub(super) async fn say(&mut self, lease: &mut Lease) -> Result<(), StoreError> {
        if self.newest.is_empty() || self.newest == self.said {
            return Ok(());
        }
        self.said.clone_from(&self.newest);
        lease.observe(Report::Gpus { gpus: self.newest.clone() }).await
    }
}
