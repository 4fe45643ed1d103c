//! What a run came to, as figures and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::causes::{CAUSES, Cure};
use crate::person::Story;

/// Jobs that are looked at together.
const WINDOW: usize = 50;
/// Times that a cause must have been seen before, for experience to have had a chance.
const SEEN: usize = 2;

/// The same jobs in three ways.
pub(crate) struct Ways {
    pub(crate) experience: Vec<Story>,
    pub(crate) rules: Vec<Story>,
    pub(crate) retry: Vec<Story>,
}

/// Figures by the names of their rows: with experience, by rules alone, by retries.
pub(crate) struct Curve(Vec<(String, [f64; 3])>);

impl Curve {
    pub(crate) fn of(ways: &Ways) -> Self {
        let jobs = ways.experience.len();
        let each = |figure: &dyn Fn(&[Story]) -> f64| {
            [&ways.experience, &ways.rules, &ways.retry].map(|one| if one.is_empty() { f64::NAN } else { figure(one) })
        };
        let mut rows = Vec::new();
        for from in (0..jobs).step_by(WINDOW) {
            let to = jobs.min(from + WINDOW);
            rows.push((
                format!("jobs {} to {to}", from + 1),
                each(&|stories| by_first(stories.get(from..to).unwrap_or_default())),
            ));
        }
        rows.push(("all".into(), each(&|stories| by_first(stories))));
        rows.push((
            format!("the last {}", 2 * WINDOW),
            each(&|stories| by_first(stories.get(jobs.saturating_sub(2 * WINDOW)..).unwrap_or_default())),
        ));
        rows.push((format!("cause seen {SEEN} times before"), each(&|stories| by_first(&seen_before(stories)))));
        rows.push((
            format!("the last {}, by somebody who knows the table", 2 * WINDOW),
            [possible(&ways.experience[jobs.saturating_sub(2 * WINDOW)..]), f64::NAN, f64::NAN],
        ));
        rows.push(("cured in the end".into(), each(&|stories| share(stories, |story| story.cured))));
        rows.push(("attempts for each that is cured".into(), each(&attempts)));
        Self(rows)
    }
}

fn share<'a>(stories: impl IntoIterator<Item = &'a Story>, holds: impl Fn(&Story) -> bool) -> f64 {
    let (mut count, mut all) = (0.0, 0.0);
    for story in stories {
        count += f64::from(holds(story));
        all += 1.0;
    }
    if all == 0.0 { 0.0 } else { count / all }
}

fn by_first(stories: &[Story]) -> f64 {
    share(stories, |story| story.by_first)
}

fn seen_before(stories: &[Story]) -> Vec<Story> {
    let seen = |at: usize| stories[..at].iter().filter(|one| one.cause == stories[at].cause).count();
    (0..stories.len()).filter(|at| seen(*at) >= SEEN).map(|at| stories[at].clone()).collect()
}

/// What could be expected of somebody who knows every cure beforehand: chance is all that is left.
fn possible(stories: &[Story]) -> f64 {
    let of = |story: &Story| match CAUSES[story.cause].cure {
        Cure::Chance(share) => share,
        Cure::Made(_) | Cure::Outside(_) => 1.0,
    };
    stories.iter().map(of).sum::<f64>() / stories.len().max(1) as f64
}

fn attempts(stories: &[Story]) -> f64 {
    let cured = stories.iter().filter(|story| story.cured).count().max(1);
    stories.iter().map(|story| f64::from(story.attempts)).sum::<f64>() / cured as f64
}

/// The mean of all seeds, and their range.
pub(crate) fn table(curves: &[Curve], jobs: usize) -> String {
    let mut text = format!(
        "Cured by the first suggestion, of {jobs} jobs; mean of {} seeds (range)\n\
         | | with experience | rules alone | the same again |\n|---|---|---|---|\n",
        curves.len()
    );
    for (row, (name, _)) in curves[0].0.iter().enumerate() {
        let cell = |way: usize| {
            let of: Vec<f64> = curves.iter().map(|curve| curve.0[row].1[way]).collect();
            let (least, most) =
                of.iter().fold((f64::MAX, f64::MIN), |(least, most), one| (least.min(*one), most.max(*one)));
            // The others were left out.
            if of.iter().any(|one| one.is_nan()) {
                return String::new();
            }
            let mean = of.iter().sum::<f64>() / of.len() as f64;
            match name.starts_with("attempts") {
                true => format!("{mean:.2} ({least:.2}-{most:.2})"),
                false => format!("{:.0} % ({:.0}-{:.0})", mean * 100.0, least * 100.0, most * 100.0),
            }
        };
        let _ = writeln!(text, "| {name} | {} | {} | {} |", cell(0), cell(1), cell(2));
    }
    text
}

/// How each cause fared: in order, whether the first suggestion cured it, and what that was.
pub(crate) fn by_cause(stories: &[Story]) -> String {
    let mut text = String::new();
    for (place, cause) in CAUSES.iter().enumerate() {
        let of: Vec<_> = stories.iter().filter(|story| story.cause == place).collect();
        let marks: String = of
            .iter()
            .map(|story| {
                if story.by_first {
                    '+'
                } else if story.cured {
                    '-'
                } else {
                    'x'
                }
            })
            .collect();
        let _ = writeln!(text, "{}: {marks}", cause.name);
        let mut firsts: BTreeMap<&str, String> = BTreeMap::new();
        for story in &of {
            let first = story.first.as_deref().unwrap_or("nothing");
            firsts.entry(first).or_default().push(if story.by_first { '+' } else { '-' });
        }
        for (first, marks) in firsts {
            let _ = writeln!(text, "    {marks}  {first}");
        }
    }
    text
}
