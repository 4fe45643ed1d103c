//! The same trainings on all GPUs at once and on the first one alone.

use drydock_spec::recipe::DType;
use half::bf16;

use super::cases::{self, Case, Trains};
use super::{Line, Outcome, Result, difference, train};
use crate::cuda::device::{Device, devices};
use crate::cuda::engine::Cuda;
use crate::cuda::model::Computed;
use crate::cuda::ranks::Ranks;

/// The other GPUs of the same kind: drydock gives a job no others.
pub(super) fn others(first: &Device) -> Result<Vec<Device>> {
    let found = devices()?.into_iter().enumerate().skip(1).filter(|(_, facts)| facts.name == first.facts().name);
    Ok(found.map(|(ordinal, _)| Device::open(ordinal as u32)).collect::<crate::cuda::error::Result<_>>()?)
}

/// What is summed does not depend on the model's kind; where chance decides, it depends on where a share begins.
pub(super) fn cases() -> impl Iterator<Item = Case> {
    let matters = |case: &Case| case.model == "llama" && (case.drops() || case.trains == Trains::Everything);
    cases::cases().into_iter().filter(matters)
}

pub(super) fn check(first: &Device, others: &[Device], case: &Case) -> Result<Vec<Line>> {
    let all: Vec<Device> = std::iter::once(first).chain(others).cloned().collect();
    match case.recipe().dtype {
        DType::F32 => check_in::<f32>(&all, case),
        DType::Bf16 => check_in::<bf16>(&all, case),
    }
}

fn check_in<T: Computed>(devices: &[Device], case: &Case) -> Result<Vec<Line>> {
    let recipe = case.recipe();
    let (decoder, trainables) = case.model()?;
    let want = train(&mut Cuda::<T>::new(&devices[0], &decoder, &recipe, &trainables)?, case, &trainables)?;
    let (decoder, trainables) = case.model()?;
    let mut ranks = Ranks::<T>::new(devices, &decoder, &recipe, &trainables)?;
    let got = train(&mut ranks, case, &trainables)?;
    let mut lines = compared(&got, &want, recipe.dtype);
    lines.push(apart(&ranks.held()?));
    Ok(lines)
}

/// Only the order of sums is another one; in bf16 so is that of the products of smaller batches.
fn compared(got: &Outcome, want: &Outcome, dtype: DType) -> Vec<Line> {
    let (exact, stepped) = match dtype {
        DType::F32 => (1e-5, 1e-3),
        DType::Bf16 => (1e-2, 5e-2),
    };
    let line = |what: &str, (absolute, relative): (f64, f64), tolerance| Line {
        what: what.to_owned(),
        absolute,
        relative,
        tolerance,
    };
    vec![
        line("losses", difference(&got.losses, &want.losses), exact),
        line("gradient norms", difference(&got.grad_norms, &want.grad_norms), exact),
        line("gradients", difference(&widened(&got.gradients), &widened(&want.gradients)), exact),
        line("changes", difference(&widened(&got.changes), &widened(&want.changes)), stepped),
    ]
}

/// Whether all ranks hold the same gradients and values: any difference would grow from step to step.
fn apart(held: &[Vec<Vec<f32>>]) -> Line {
    let first = widened(&held[0]);
    let worst = |worst: (f64, f64), found: (f64, f64)| (worst.0.max(found.0), worst.1.max(found.1));
    let differences = held[1..].iter().map(|held| difference(&widened(held), &first));
    let (absolute, relative) = differences.fold((0.0, 0.0), worst);
    Line { what: "what ranks hold".to_owned(), absolute, relative, tolerance: 0.0 }
}

fn widened(groups: &[Vec<f32>]) -> Vec<f64> {
    groups.iter().flatten().map(|&value| f64::from(value)).collect()
}
