//! What the grid of `tests/estimate` came to, for as long as an installation has measured no jobs of its own.

/// Measured by predicted peak memory, and measured by predicted use of the disk, of each of the grid's jobs, by kind of job;
/// of finetunes with their method. On a virtual machine with two cores of an x86-64 server CPU with AVX-512.
const RATIOS: [(&str, Option<&str>, [f64; 2]); 40] = [
    ("finetune", Some("lora"), [0.992, 0.350]),
    ("finetune", Some("lora"), [0.977, 0.350]),
    ("finetune", Some("full"), [1.024, 0.466]),
    ("finetune", Some("lora"), [1.022, 0.350]),
    ("finetune", Some("dora"), [0.956, 0.365]),
    ("finetune", Some("lora"), [0.997, 0.604]),
    ("finetune", Some("lora"), [1.002, 0.604]),
    ("finetune", Some("lora"), [1.009, 0.604]),
    ("finetune", Some("lora"), [0.990, 0.917]),
    ("finetune", Some("lora"), [0.997, 0.604]),
    ("finetune", Some("qlora"), [1.001, 0.604]),
    ("finetune", Some("qlora"), [0.995, 0.604]),
    ("finetune", Some("dora"), [0.969, 0.619]),
    ("finetune", Some("full"), [1.001, 0.985]),
    ("finetune", Some("lora"), [0.999, 0.604]),
    ("finetune", Some("lora"), [1.005, 0.604]),
    ("finetune", Some("qlora"), [0.951, 0.604]),
    ("finetune", Some("lora"), [0.995, 0.604]),
    ("finetune", Some("lora"), [0.996, 0.604]),
    ("finetune", Some("lora"), [1.002, 0.604]),
    ("finetune", Some("lora"), [0.992, 0.659]),
    ("finetune", Some("lora"), [0.989, 0.659]),
    ("finetune", Some("qlora"), [1.003, 0.659]),
    ("finetune", Some("lora"), [0.968, 0.659]),
    ("finetune", Some("lora"), [0.964, 0.659]),
    ("finetune", Some("full"), [0.985, 0.497]),
    ("finetune", Some("lora"), [1.007, 0.836]),
    ("finetune", Some("lora"), [0.988, 0.836]),
    ("finetune", Some("lora"), [1.016, 0.836]),
    ("finetune", Some("qlora"), [1.016, 0.836]),
    ("finetune", Some("full"), [0.996, 0.996]),
    ("train", None, [1.028, 0.925]),
    ("train", None, [1.005, 0.985]),
    ("train", None, [1.016, 0.985]),
    ("evaluate", None, [1.026, 0.008]),
    ("evaluate", None, [0.988, 0.040]),
    ("evaluate", None, [0.998, 0.008]),
    ("quantize", None, [0.997, 0.909]),
    ("quantize", None, [0.929, 0.955]),
    ("quantize", None, [1.020, 0.894]),
];

/// The ratios of memory of the grid's jobs of a kind and method, and then those of all others, so that there are always
/// enough.
#[must_use]
pub fn shipped_memory(kind: &str, method: Option<&str>) -> Vec<f64> {
    alike_first(kind, method).map(|[memory, _]| memory).collect()
}

/// The same of the disk.
#[must_use]
pub fn shipped_disk(kind: &str, method: Option<&str>) -> Vec<f64> {
    alike_first(kind, method).map(|[_, disk]| disk).collect()
}

fn alike_first(kind: &str, method: Option<&str>) -> impl Iterator<Item = [f64; 2]> {
    let mut rows = RATIOS;
    rows.sort_by_key(|(of_kind, of_method, _)| match (*of_kind == kind, *of_method == method) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    });
    rows.into_iter().map(|(_, _, ratios)| ratios)
}

#[cfg(test)]
mod tests {
    use super::super::interval::ENOUGH;
    use super::*;

    #[test]
    fn what_is_shipped_is_enough_for_every_kind_and_within_what_an_estimate_may_be_off() {
        for (kind, method) in
            [("finetune", Some("lora")), ("finetune", Some("full")), ("train", None), ("quantize", None)]
        {
            let ratios = shipped_memory(kind, method);
            assert!(ratios.len() >= ENOUGH && shipped_disk(kind, method).len() == ratios.len());
            assert!(ratios.iter().all(|ratio| (1.0 / 1.15..=1.0 / 0.95).contains(ratio)), "{ratios:?}");
        }
    }
}
