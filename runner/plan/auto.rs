//! What the plan chooses where that was left to it: of all that fits, what costs least. Pure rules.

use drydock_spec::FinetuneSpec;
use drydock_spec::finetune::Method;
use drydock_spec::recipe::{Auto, Recipe};

/// Recipes that learn the same, from the cheapest to the one that needs least: smaller forward passes first, of which
/// more make a step, then layers that are computed again. A pass has `least_rows` at least.
pub(super) fn recipes(asked: &Recipe, least_rows: u32) -> Vec<Recipe> {
    let again = match asked.auto.contains(&Auto::GradientCheckpointing) && !asked.gradient_checkpointing {
        true => vec![false, true],
        false => vec![asked.gradient_checkpointing],
    };
    let batches = match asked.auto.contains(&Auto::BatchSize) {
        true => batches(asked, least_rows),
        false => vec![(asked.per_device_train_batch_size, asked.gradient_accumulation_steps)],
    };
    let recipe = |gradient_checkpointing, (rows, passes)| Recipe {
        per_device_train_batch_size: rows,
        gradient_accumulation_steps: passes,
        gradient_checkpointing,
        auto: Vec::new(),
        ..asked.clone()
    };
    again.iter().flat_map(|again| batches.iter().map(|batch| recipe(*again, *batch))).collect()
}

/// The rows of a pass and the passes of a step: every way to have as many rows a step, from the fewest passes on.
fn batches(asked: &Recipe, least_rows: u32) -> Vec<(u32, u32)> {
    const MOST: u64 = 4096;
    let step = asked.rows_per_step();
    let ways = (1..=step.min(MOST)).rev().filter(|rows| step.is_multiple_of(*rows) && step / rows <= MOST);
    let ways = ways.filter(|rows| *rows >= u64::from(least_rows)).map(|rows| (rows as u32, (step / rows) as u32));
    let found: Vec<_> = ways.collect();
    if found.is_empty() { vec![(asked.per_device_train_batch_size, asked.gradient_accumulation_steps)] } else { found }
}

/// The same of a finetune; one whose base is held quantized comes last, as it learns something else.
pub(super) fn finetunes(asked: &FinetuneSpec, least_rows: u32) -> Vec<FinetuneSpec> {
    let methods = match asked.recipe.auto.contains(&Auto::Method) && asked.method == Method::Lora {
        true => vec![Method::Lora, Method::Qlora],
        false => vec![asked.method],
    };
    let recipes = recipes(&asked.recipe, least_rows);
    let with =
        |method| recipes.iter().map(move |recipe| FinetuneSpec { method, recipe: recipe.clone(), ..asked.clone() });
    methods.into_iter().flat_map(with).collect()
}

/// The first that fits, or the last, which is then refused with what would.
pub(super) fn choose<T>(candidates: Vec<T>, fits: impl Fn(&T) -> bool) -> Option<T> {
    let last = candidates.len().saturating_sub(1);
    candidates.into_iter().enumerate().find(|(at, candidate)| *at == last || fits(candidate)).map(|(_, found)| found)
}

/// What became of what was left to the plan, in words.
pub(super) fn said(asked: &Recipe, chosen: &Recipe, method: Option<Method>) -> Option<String> {
    let of = |auto: &Auto| match auto {
        Auto::BatchSize => format!(
            "per_device_train_batch_size = {}, gradient_accumulation_steps = {}",
            chosen.per_device_train_batch_size, chosen.gradient_accumulation_steps
        ),
        Auto::GradientCheckpointing => format!("gradient_checkpointing = {}", chosen.gradient_checkpointing),
        Auto::Method => format!("method = {}", method.map_or("full", Method::name)),
    };
    let chosen: Vec<_> = asked.auto.iter().map(of).collect();
    (!chosen.is_empty()).then(|| format!("chosen to fit: {}", chosen.join(", ")))
}

#[cfg(test)]
mod tests {
    use drydock_spec::FinetuneArgs;

    use super::*;

    fn spec(rows: u32, passes: u32, auto: &[Auto]) -> FinetuneSpec {
        let args = FinetuneArgs {
            model: "m".into(),
            dataset: "d".into(),
            per_device_train_batch_size: Some(rows),
            gradient_accumulation_steps: Some(passes),
            auto: Some(auto.to_vec()),
            ..FinetuneArgs::default()
        };
        args.parse().unwrap()
    }

    #[test]
    fn a_step_learns_from_as_many_rows_however_its_passes_are_cut() {
        let asked = spec(4, 3, &[Auto::BatchSize]);
        let ways: Vec<_> = finetunes(&asked, 2)
            .iter()
            .map(|spec| (spec.recipe.per_device_train_batch_size, spec.recipe.gradient_accumulation_steps))
            .collect();
        assert_eq!(ways, [(12, 1), (6, 2), (4, 3), (3, 4), (2, 6)]);
    }

    #[test]
    fn what_changes_nothing_that_is_learnt_comes_first() {
        let asked = spec(2, 1, &[Auto::Method, Auto::GradientCheckpointing, Auto::BatchSize]);
        let all = finetunes(&asked, 1);
        let row = |spec: &FinetuneSpec| {
            (spec.method.name(), spec.recipe.gradient_checkpointing, spec.recipe.per_device_train_batch_size)
        };
        let order: Vec<_> = all.iter().map(row).collect();
        assert_eq!(order[..4], [("lora", false, 2), ("lora", false, 1), ("lora", true, 2), ("lora", true, 1)]);
        assert_eq!(order[4..].iter().map(|(method, ..)| *method).collect::<Vec<_>>(), ["qlora"; 4]);
        let chosen = choose(all, |spec| spec.recipe.gradient_checkpointing).unwrap();
        assert_eq!(row(&chosen), ("lora", true, 2));
        assert!(chosen.recipe.auto.is_empty(), "nothing is left open of a job that is queued");
        let said = said(&asked.recipe, &chosen.recipe, Some(chosen.method)).unwrap();
        let expected = "chosen to fit: method = lora, gradient_checkpointing = true, per_device_train_batch_size = 2, \
                        gradient_accumulation_steps = 1";
        assert_eq!(said, expected);
    }

    #[test]
    fn without_being_asked_nothing_is_chosen() {
        let asked = spec(4, 1, &[]);
        assert_eq!(finetunes(&asked, 1), std::slice::from_ref(&asked));
        assert_eq!(said(&asked.recipe, &asked.recipe, None), None);
        assert_eq!(choose(vec![1, 2, 3], |_| false), Some(3), "the one that needs least is refused");
    }
}
