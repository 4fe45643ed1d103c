//! Whether what helped is learnt: 300 jobs, each struck by one of twenty causes that only the engine knows of, and how
//! many of them are cured by the first thing that drydock offers. Beside it the same jobs with the rules alone (a house
//! without experience for each), and with nothing but trying the same again. See `make bench-learning`.
//!
//!     learning [--jobs N] [--seeds N] [--causes] [--only-experience]

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot go on says where, and prints")]

#[path = "../../harness/harness.rs"]
mod harness;

mod causes;
mod curve;
mod house;
mod person;
mod says;
mod struck;

use std::sync::Arc;
use std::time::Instant;

use causes::CAUSES;
use curve::{Curve, Ways};
use house::House;
use person::{Story, follows_advice, insists};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use struck::Struck;

struct Asked {
    jobs: usize,
    seeds: u64,
    /// Whether each cause is told of.
    causes: bool,
    /// Whether the other ways are left out.
    only_experience: bool,
}

#[tokio::main]
async fn main() {
    let asked = asked();
    let mut curves = Vec::new();
    for seed in 1..=asked.seeds {
        let began = Instant::now();
        let others = if asked.only_experience { 0 } else { asked.jobs };
        let ways = Ways {
            experience: Box::pin(with_experience(seed, asked.jobs)).await,
            rules: Box::pin(without_experience(seed, others)).await,
            retry: with_retries(seed, others).await,
        };
        println!("seed {seed}: {:.0} s", began.elapsed().as_secs_f64());
        if asked.causes {
            println!("{}", curve::by_cause(&ways.experience));
        }
        curves.push(Curve::of(&ways));
    }
    println!("{}", curve::table(&curves, asked.jobs));
}

fn asked() -> Asked {
    let mut asked = Asked { jobs: 300, seeds: 3, causes: false, only_experience: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| fail(&word));
        match word.as_str() {
            "--jobs" => asked.jobs = number() as usize,
            "--seeds" => asked.seeds = number(),
            "--causes" => asked.causes = true,
            "--only-experience" => asked.only_experience = true,
            // Cargo's own word for every benchmark.
            "--bench" => (),
            _ => fail(&word),
        }
    }
    asked
}

fn fail(word: &str) -> ! {
    println!(
        "learning: {word:?} is no option, or needs a number; there are --jobs N, --seeds N, --causes and --only-experience"
    );
    std::process::exit(2);
}

/// A job that is struck, and by which cause. The same seed and number give the same one.
fn drawn(seed: u64, number: usize) -> (usize, Arc<Struck>, StdRng) {
    let mut random = StdRng::seed_from_u64(seed << 32 | number as u64);
    // The k-th cause is 1/k as frequent as the first.
    let weights = (1..=CAUSES.len()).map(|rank| 1.0 / rank as f64);
    let mut left = random.random_range(0.0..weights.clone().sum::<f64>());
    let place = weights
        .take_while(|weight| {
            left -= weight;
            left > 0.0
        })
        .count()
        .min(CAUSES.len() - 1);
    let struck = Struck::draw(&CAUSES[place], &mut random);
    (place, Arc::new(struck), random)
}

/// One house, which sees them all.
async fn with_experience(seed: u64, jobs: usize) -> Vec<Story> {
    let house = House::new().await;
    let mut stories = Vec::new();
    for number in 0..jobs {
        let (cause, struck, mut random) = drawn(seed, number);
        house.strike(struck.clone(), random.random());
        stories.push(Story { cause, ..follows_advice(&house, &struck, &mut random).await });
    }
    stories
}

/// A new house for each of them.
async fn without_experience(seed: u64, jobs: usize) -> Vec<Story> {
    let mut stories = Vec::new();
    for number in 0..jobs {
        let (cause, struck, mut random) = drawn(seed, number);
        let house = House::new().await;
        house.strike(struck.clone(), random.random());
        stories.push(Story { cause, ..follows_advice(&house, &struck, &mut random).await });
    }
    stories
}

/// Nobody asks what helps.
async fn with_retries(seed: u64, jobs: usize) -> Vec<Story> {
    let house = House::new().await;
    let mut stories = Vec::new();
    for number in 0..jobs {
        let (cause, struck, mut random) = drawn(seed, number);
        house.strike(struck.clone(), random.random());
        stories.push(Story { cause, ..insists(&house, &struck).await });
    }
    stories
}
