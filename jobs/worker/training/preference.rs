//! What preferences cost: functions of how likely the model finds two answers, as TRL computes them.
//!
//! Each takes log-probabilities of whole answers and returns the loss with its derivatives, all in f64: there are two
//! numbers a lesson, and their differences are small.

/// A loss, its derivatives, and the rewards that the model gives implicitly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged<const N: usize> {
    pub loss: f64,
    /// By each answer's log-probability.
    pub slopes: [f64; N],
    pub rewards: [f64; N],
}

/// DPO (Rafailov et al. 2023, equation 7) with the sigmoid: -log σ(β · margin), where the margin is how much more the
/// chosen answer gained over the reference than the rejected one. `policy` and `reference` are sums over the tokens of
/// the chosen and of the rejected answer.
pub fn dpo(beta: f64, policy: [f64; 2], reference: [f64; 2]) -> Judged<2> {
    let rewards = [beta * (policy[0] - reference[0]), beta * (policy[1] - reference[1])];
    let margin = rewards[0] - rewards[1];
    let slope = -beta * sigmoid(-margin);
    Judged { loss: softplus(-margin), slopes: [slope, -slope], rewards }
}

/// ORPO's odds ratio (Hong et al. 2024, equations 4 and 7): -β log σ(log odds(chosen) - log odds(rejected)), to be added
/// to the chosen answer's negative log likelihood. `policy` are means over the tokens of the two answers.
pub fn odds_ratio(beta: f64, policy: [f64; 2]) -> Judged<2> {
    // An answer that is certain has infinite odds.
    let policy = policy.map(|mean| mean.min(-1e-12));
    let log_odds = policy.map(|mean| mean - (-mean.exp_m1()).ln());
    let difference = log_odds[0] - log_odds[1];
    let slope = -beta * sigmoid(-difference);
    let [chosen, rejected] = policy.map(|mean| 1.0 / -mean.exp_m1());
    Judged {
        loss: beta * softplus(-difference),
        slopes: [slope * chosen, -slope * rejected],
        rewards: policy.map(|mean| beta * mean),
    }
}

/// KTO (Ethayarajh et al. 2024, equation 8, both weights 1): 1 - σ(β · (gain - drift)) for a good answer, the other way
/// round for a bad one. `policy` and `reference` are sums over the answer's tokens; `drift` estimates how far the model
/// has moved from the reference altogether, in nats, and is taken for a constant.
pub fn kto(beta: f64, policy: f64, reference: f64, drift: f64, good: bool) -> Judged<1> {
    let gain = policy - reference;
    let value = sigmoid(beta * if good { gain - drift } else { drift - gain });
    let slope = beta * value * (1.0 - value);
    Judged { loss: 1.0 - value, slopes: [if good { -slope } else { slope }], rewards: [beta * gain] }
}

/// KTO's drift: the mean over a forward pass of what answers gained that do not belong to their prompts, if positive.
pub fn drift(policy: &[f64], reference: &[f64]) -> f64 {
    let gains = policy.iter().zip(reference).map(|(policy, reference)| policy - reference);
    (gains.sum::<f64>() / policy.len().max(1) as f64).max(0.0)
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// log(1 + exp(x)), which is -log σ(-x).
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_slope(slope: f64, at: f64, f: impl Fn(f64) -> f64) {
        // Near zero the odds of an answer bend sharply.
        let step = (1e-6 * at.abs().max(1.0)).min(1e-4 * at.abs());
        let numeric = (f(at + step) - f(at - step)) / (2.0 * step);
        assert!((slope - numeric).abs() < 1e-6 * (1.0 + numeric.abs()), "{slope}, not {numeric}");
    }

    proptest! {
        #[test]
        fn slopes_are_those_of_the_losses(
            beta in 0.01..5.0f64, policy in [-60.0..-0.01f64, -60.0..-0.01f64], reference in [-60.0..0.0f64, -60.0..0.0f64],
            drift in 0.0..5.0f64, good: bool
        ) {
            let [c, r] = policy;
            let judged = dpo(beta, policy, reference);
            assert_slope(judged.slopes[0], c, |c| dpo(beta, [c, r], reference).loss);
            assert_slope(judged.slopes[1], r, |r| dpo(beta, [c, r], reference).loss);
            let means = policy.map(|sum| sum / 20.0);
            let judged = odds_ratio(beta, means);
            assert_slope(judged.slopes[0], means[0], |c| odds_ratio(beta, [c, means[1]]).loss);
            assert_slope(judged.slopes[1], means[1], |r| odds_ratio(beta, [means[0], r]).loss);
            let judged = kto(beta, c, reference[0], drift, good);
            assert_slope(judged.slopes[0], c, |c| kto(beta, c, reference[0], drift, good).loss);
        }

        #[test]
        fn extremes_stay_numbers(beta in 0.01..100.0f64, policy in [-1e6..=0.0f64, -1e6..=0.0f64]) {
            for judged in [dpo(beta, policy, [0.0, -1e6]), odds_ratio(beta, policy), odds_ratio(beta, [0.0, policy[0]])] {
                prop_assert!(judged.loss.is_finite() && judged.slopes.iter().all(|slope| slope.is_finite()), "{judged:?}");
            }
        }
    }

    #[test]
    fn slopes_are_those_of_the_losses_where_an_answer_is_all_but_certain() {
        let means = [-0.0005, -0.0005];
        let judged = odds_ratio(0.01, means);
        assert_slope(judged.slopes[0], means[0], |c| odds_ratio(0.01, [c, means[1]]).loss);
        assert_slope(judged.slopes[1], means[1], |r| odds_ratio(0.01, [means[0], r]).loss);
    }

    #[test]
    fn a_model_that_is_its_own_reference_has_no_preference_yet() {
        let judged = dpo(0.1, [-5.0, -9.0], [-5.0, -9.0]);
        assert_eq!((judged.loss, judged.rewards), (std::f64::consts::LN_2, [0.0, 0.0]));
        assert_eq!(kto(0.1, -5.0, -5.0, 0.0, true).loss, 0.5);
        assert_eq!(drift(&[-3.0, -1.0], &[-1.0, -2.0]), 0.0, "never negative");
    }
}
