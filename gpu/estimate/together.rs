//! What a training on several GPUs takes besides what it takes on one: each of them holds the whole model, computes passes
//! that are no larger, and sums its gradients with the others.

use drydock_spec::device::EXCHANGE_BYTES;

use super::{CONTEXT_BYTES, Needs, Part};

/// Of each GPU's memory, where `needs` is what one needs alone.
#[must_use]
pub fn of_each_gpu(needs: Needs, gpus: u32) -> Needs {
    if gpus > 1 { needs.with(Part::Exchange, EXCHANGE_BYTES) } else { needs }
}

/// Of the host's memory, where `needs` is what a worker needs beside one GPU: a context for each of the others, and what
/// those exchange by way of the host that cannot reach each other.
#[must_use]
pub fn beside_gpus(needs: Needs, gpus: u32) -> Needs {
    let others = u64::from(gpus.saturating_sub(1));
    let exchanged = if gpus > 1 { EXCHANGE_BYTES } else { 0 };
    needs.with(Part::Context, others * CONTEXT_BYTES).with(Part::Exchange, exchanged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_several_gpus_take_more_than_one() {
        let one = Needs::default().with(Part::Context, CONTEXT_BYTES);
        assert_eq!(of_each_gpu(one.clone(), 1), one);
        assert_eq!(beside_gpus(one.clone(), 1), one);
        assert_eq!(of_each_gpu(one.clone(), 8).total(), CONTEXT_BYTES + EXCHANGE_BYTES);
        assert_eq!(beside_gpus(one, 8).total(), 8 * CONTEXT_BYTES + EXCHANGE_BYTES);
    }
}
