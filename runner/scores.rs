//! An evaluation's numbers side by side, as people compare them.

use drydock_spec::evaluate::Measure;
use drydock_spec::report::Score;

/// What the metric of a difference is called: that to the first model on the same rows, so that its standard error is
/// that of pairs.
const DIFFERENCE: &str = "_difference";

/// A metric in a line, and under it a line for each model: value, standard error, and the difference to the first
/// model where the worker has measured one.
#[must_use]
pub fn lines(scores: &[Score]) -> Vec<String> {
    let mut lines = Vec::new();
    let is_first = |index: usize, score: &Score| !scores[..index].iter().any(|before| same_metric(before, score));
    let plain = |score: &Score| !score.metric.ends_with(DIFFERENCE);
    let widest = scores.iter().map(|score| score.model.chars().count()).max().unwrap_or(0);
    for (index, score) in scores.iter().enumerate().filter(|(_, score)| plain(score)) {
        if !is_first(index, score) {
            continue;
        }
        lines.push(format!("{} ({} rows)", title(score), score.rows));
        for of_model in scores.iter().filter(|other| same_metric(other, score)) {
            let padding = " ".repeat(widest - of_model.model.chars().count());
            let difference = scores
                .iter()
                .find(|other| other.model == of_model.model && is_difference(other, score))
                .map(|difference| format!("  {}", number(difference)))
                .unwrap_or_default();
            lines.push(format!("  {}{padding}  {}{difference}", of_model.model, number(of_model)));
        }
    }
    lines
}

/// Whether the others are better than the first model, in a sentence for each measure: by the measure's main metric,
/// which is the one that the worker reports first. A difference of less than two standard errors is called none.
#[must_use]
pub fn verdict(scores: &[Score]) -> String {
    let mut sentences: Vec<String> = Vec::new();
    for (index, first) in scores.iter().enumerate() {
        if scores[..index].iter().any(|before| before.measure == first.measure) {
            continue;
        }
        let others = scores[index + 1..].iter().filter(|other| same_metric(other, first));
        let said = others.map(|other| format!(", {} {:.4}{}", other.model, other.value, judged(scores, other)));
        sentences.push(format!("{} of {} {:.4}{}", first.metric, first.model, first.value, said.collect::<String>()));
    }
    sentences.join("; ")
}

/// What the difference of this score to the first model's means, where it was measured.
fn judged(scores: &[Score], score: &Score) -> String {
    let of_this = |other: &&Score| other.model == score.model && is_difference(other, score);
    let Some(difference) = scores.iter().find(of_this) else { return String::new() };
    let (by, doubt) = (difference.value.abs(), difference.stderr.unwrap_or(f64::INFINITY));
    if by <= 2.0 * doubt {
        return " (no clear difference)".into();
    }
    let better = (difference.value < 0.0) == (score.measure == Measure::Perplexity);
    format!(" ({} by {by:.4} ± {doubt:.4})", if better { "better" } else { "worse" })
}

fn same_metric(one: &Score, other: &Score) -> bool {
    one.measure == other.measure && one.metric == other.metric
}

fn is_difference(score: &Score, of: &Score) -> bool {
    score.measure == of.measure && score.metric.strip_suffix(DIFFERENCE) == Some(&of.metric)
}

/// The value and its standard error; a difference always has its sign.
#[must_use]
pub fn number(score: &Score) -> String {
    let signed = score.metric.ends_with(DIFFERENCE);
    let value = if signed { format!("{:+.4}", score.value) } else { format!("{:.4}", score.value) };
    match score.stderr {
        Some(stderr) => format!("{value} ± {stderr:.4}"),
        None => value,
    }
}

/// What is measured, and as which number; once where both have one name.
fn title(score: &Score) -> String {
    let measure = name(score.measure);
    if score.metric == measure { measure.to_owned() } else { format!("{measure} {}", score.metric) }
}

fn name(measure: Measure) -> &'static str {
    match measure {
        Measure::Perplexity => "perplexity",
        Measure::MultipleChoice => "multiple_choice",
        Measure::ExactMatch => "exact_match",
        Measure::NumericMatch => "numeric_match",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(model: &str, metric: &str, value: f64, stderr: Option<f64>) -> Score {
        Score { model: model.into(), measure: Measure::MultipleChoice, metric: metric.into(), value, stderr, rows: 200 }
    }

    #[test]
    fn models_stand_side_by_side_with_the_difference_to_the_first() {
        let scores = [
            score("base", "acc", 0.41, Some(0.02)),
            score("base", "acc_norm", 0.4, None),
            score("base + adapter", "acc", 0.45, Some(0.02)),
            score("base + adapter", "acc_difference", 0.04, Some(0.011)),
            score("base + adapter", "acc_norm", 0.5, None),
        ];
        let expected = [
            "multiple_choice acc (200 rows)",
            "  base            0.4100 ± 0.0200",
            "  base + adapter  0.4500 ± 0.0200  +0.0400 ± 0.0110",
            "multiple_choice acc_norm (200 rows)",
            "  base            0.4000",
            "  base + adapter  0.5000",
        ];
        assert_eq!(lines(&scores), expected);
        assert!(lines(&[]).is_empty());
    }

    #[test]
    fn a_verdict_says_which_models_are_better_than_the_first() {
        let perplexity = |model: &str, metric: &str, value, stderr| Score {
            measure: Measure::Perplexity,
            ..score(model, metric, value, Some(stderr))
        };
        let scores = [
            perplexity("base", "perplexity", 20.0, 1.0),
            perplexity("base", "bits_per_byte", 3.0, 0.1),
            score("base", "acc", 0.5, Some(0.1)),
            perplexity("tuned", "perplexity", 8.0, 1.0),
            perplexity("tuned", "perplexity_difference", -12.0, 0.5),
            score("tuned", "acc", 0.25, Some(0.1)),
            score("tuned", "acc_difference", -0.25, Some(0.0625)),
            perplexity("small", "perplexity", 19.0, 1.0),
            perplexity("small", "perplexity_difference", -1.0, 0.5),
        ];
        let expected = "perplexity of base 20.0000, tuned 8.0000 (better by 12.0000 ± 0.5000), \
                        small 19.0000 (no clear difference); \
                        acc of base 0.5000, tuned 0.2500 (worse by 0.2500 ± 0.0625)";
        assert_eq!(verdict(&scores), expected);
    }
}
