//! What the grid of `tests/estimate` came to, for as long as an installation has measured no jobs of its own.

/// Measured by predicted peak memory of each of the grid's jobs, by kind of job; of finetunes with their method. On a
/// virtual machine with two cores of an x86-64 server CPU with AVX-512.
const MEMORY: [(&str, Option<&str>, f64); 23] = [
    ("finetune", Some("lora"), 1.050),
    ("finetune", Some("lora"), 0.970),
    ("finetune", Some("full"), 1.050),
    ("finetune", Some("lora"), 1.050),
    ("finetune", Some("dora"), 1.050),
    ("finetune", Some("lora"), 0.998),
    ("finetune", Some("lora"), 1.001),
    ("finetune", Some("lora"), 1.018),
    ("finetune", Some("lora"), 0.953),
    ("finetune", Some("lora"), 0.998),
    ("finetune", Some("qlora"), 0.969),
    ("finetune", Some("qlora"), 0.926),
    ("finetune", Some("dora"), 0.967),
    ("finetune", Some("full"), 1.015),
    ("finetune", Some("lora"), 0.978),
    ("finetune", Some("lora"), 0.920),
    ("finetune", Some("qlora"), 0.870),
    ("finetune", Some("lora"), 0.991),
    ("finetune", Some("lora"), 0.995),
    ("finetune", Some("lora"), 0.990),
    ("finetune", Some("lora"), 1.009),
    ("finetune", Some("lora"), 0.886),
    ("finetune", Some("qlora"), 0.949),
];

/// The ratios of the grid's jobs of a kind and method, and then those of all others, so that there are always enough.
#[must_use]
pub fn shipped_memory(kind: &str, method: Option<&str>) -> Vec<f64> {
    let mut rows: Vec<_> = MEMORY.iter().collect();
    rows.sort_by_key(|(of_kind, of_method, _)| match (*of_kind == kind, *of_method == method) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    });
    rows.into_iter().map(|(_, _, ratio)| *ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::super::interval::ENOUGH;
    use super::*;

    #[test]
    fn what_is_shipped_is_enough_for_every_kind_and_within_the_grids_bounds() {
        for (kind, method) in
            [("finetune", Some("lora")), ("finetune", Some("full")), ("train", None), ("quantize", None)]
        {
            let ratios = shipped_memory(kind, method);
            assert!(ratios.len() >= ENOUGH);
            assert!(ratios.iter().all(|ratio| (1.0 / 1.15..=1.0 / 0.95).contains(ratio)), "{ratios:?}");
        }
    }
}
