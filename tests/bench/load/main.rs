//! What the gateway holds: measured on the real program, beside peers in the same run where there are any, and printed
//! as a table with the goal of each row. See `make bench-gateway`.
//!
//!     load [--rows NAME,...] [--short]

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot go on says where, and prints")]

#[path = "../../harness/harness.rs"]
mod harness;
#[path = "../../sandbox/image.rs"]
mod image;

mod calls;
mod first_report;
mod idle;
mod process;
mod queue;
mod row;
mod soak;
mod watchers;

use row::{Length, Row};

const ROWS: [(&str, Row); 6] = [
    ("first-report", |length| Box::pin(first_report::measure(length))),
    ("calls", |length| Box::pin(calls::measure(length))),
    ("queue", |length| Box::pin(queue::measure(length))),
    ("watchers", |length| Box::pin(watchers::measure(length))),
    ("idle", |length| Box::pin(idle::measure(length))),
    ("soak", |length| Box::pin(soak::measure(length))),
];

#[tokio::main]
async fn main() {
    let (mut wanted, mut length) = (Vec::new(), Length::Full);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rows" => wanted.extend(words.next().unwrap_or_default().split(',').map(str::to_owned)),
            "--short" => length = Length::Short,
            // Cargo's own word for every benchmark.
            "--bench" => (),
            other => fail(&format!("{other:?} is no option; there are --rows NAME,... and --short")),
        }
    }
    let known: Vec<_> = ROWS.iter().map(|(name, _)| *name).collect();
    if let Some(name) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        fail(&format!("no row is called {name:?}; there are {}", known.join(", ")));
    }
    println!("{}", row::HEAD);
    for (name, measure) in ROWS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            for finding in measure(length).await {
                println!("{finding}");
            }
        }
    }
}

fn fail(problem: &str) -> ! {
    println!("load: {problem}");
    std::process::exit(2);
}
