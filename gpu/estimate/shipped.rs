//! What the grid of `tests/estimate` came to, for as long as an installation has measured no jobs of its own.

/// Measured by predicted peak memory of each of the grid's jobs, by kind of job; of finetunes with their method. On a
/// virtual machine with two cores of an x86-64 server CPU with AVX-512.
const MEMORY: [(&str, Option<&str>, f64); 37] = [
    ("finetune", Some("lora"), 1.023),
    ("finetune", Some("lora"), 0.980),
    ("finetune", Some("full"), 1.028),
    ("finetune", Some("lora"), 1.034),
    ("finetune", Some("dora"), 0.981),
    ("finetune", Some("lora"), 0.998),
    ("finetune", Some("lora"), 1.007),
    ("finetune", Some("lora"), 1.017),
    ("finetune", Some("lora"), 0.952),
    ("finetune", Some("lora"), 0.998),
    ("finetune", Some("qlora"), 1.016),
    ("finetune", Some("qlora"), 1.004),
    ("finetune", Some("dora"), 0.966),
    ("finetune", Some("full"), 1.000),
    ("finetune", Some("lora"), 1.011),
    ("finetune", Some("lora"), 1.015),
    ("finetune", Some("lora"), 0.988),
    ("finetune", Some("lora"), 0.993),
    ("finetune", Some("lora"), 0.990),
    ("finetune", Some("lora"), 0.985),
    ("finetune", Some("lora"), 0.973),
    ("finetune", Some("qlora"), 1.031),
    ("finetune", Some("lora"), 0.992),
    ("finetune", Some("lora"), 0.984),
    ("finetune", Some("full"), 0.982),
    ("finetune", Some("lora"), 1.007),
    ("finetune", Some("lora"), 0.996),
    ("finetune", Some("lora"), 1.038),
    ("finetune", Some("qlora"), 1.037),
    ("finetune", Some("full"), 0.985),
    ("train", None, 1.030),
    ("train", None, 1.007),
    ("train", None, 1.019),
    ("evaluate", None, 0.906),
    ("quantize", None, 0.994),
    ("quantize", None, 0.877),
    ("quantize", None, 1.015),
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
