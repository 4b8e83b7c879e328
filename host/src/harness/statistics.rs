//! Medians, and how sure they are.
//!
//! The interval of a median is between two order statistics of the samples, which is exact
//! whatever the distribution: a sample is below the true median as often as a coin shows heads.
//! No number of samples below 6 can give 95 %; the interval is then from the least to the most.

use super::results::Estimate;

/// How often an interval must hold the true median.
const CONFIDENCE: f64 = 0.95;

/// The median of `samples` with its 95 % interval.
///
/// # Panics
/// Without samples.
pub fn estimate(samples: &[f64]) -> Estimate {
    assert!(!samples.is_empty(), "an estimate needs a sample");
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let skipped = num_outside(n);
    let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
    Estimate { median, low: sorted[skipped], high: sorted[n - 1 - skipped], n }
}

/// Width of the interval over the median.
pub fn relative_width(estimate: &Estimate) -> f64 {
    (estimate.high - estimate.low) / estimate.median.abs()
}

/// How many of `n` samples may lie outside the interval at each end: the most for which a coin
/// thrown `n` times shows that few heads in 2.5 % of cases at most.
fn num_outside(n: usize) -> usize {
    let ln_total = n as f64 * std::f64::consts::LN_2;
    // ln of `n` over `k`, from one `k` to the next.
    let mut ln_ways = 0.0;
    let mut tail = 0.0;
    for k in 0..n / 2 {
        tail += (ln_ways - ln_total).exp();
        if tail > (1.0 - CONFIDENCE) / 2.0 {
            // `k` heads are too likely, so the interval reaches to the sample before.
            return k.saturating_sub(1);
        }
        ln_ways += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (n / 2).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interval (X_(low), X_(high)), counted from 1, as in tables of the sign test.
    #[test]
    fn ranks_are_those_of_the_tables() {
        for (n, low, high) in [
            (6, 1, 6),
            (8, 1, 8),
            (9, 2, 8),
            (10, 2, 9),
            (15, 4, 12),
            (20, 6, 15),
            (50, 18, 33),
            (100, 40, 61),
        ] {
            let outside = num_outside(n);
            assert_eq!((outside + 1, n - outside), (low, high), "{n} samples");
        }
    }

    #[test]
    fn few_samples_give_their_whole_range() {
        for n in 1..=5u32 {
            let samples: Vec<f64> = (1..=n).map(f64::from).collect();
            let found = estimate(&samples);
            assert_eq!((found.low, found.high, found.n), (1.0, f64::from(n), n as usize));
        }
    }

    #[test]
    fn order_does_not_matter_and_one_outlier_moves_nothing() {
        let even = estimate(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(even.median, 2.5);
        let mut samples: Vec<f64> = (1..=21).map(f64::from).rev().collect();
        let before = estimate(&samples);
        assert_eq!((before.median, before.low, before.high), (11.0, 6.0, 16.0));
        samples[0] = 1e9;
        assert_eq!(estimate(&samples), before);
    }

    #[test]
    fn many_samples_do_not_underflow() {
        let outside = num_outside(10_000);
        // Half of n, less 1.96 standard deviations of half the root of n.
        assert!((4900..=4903).contains(&outside), "{outside}");
    }

    #[test]
    fn intervals_hold_the_true_median_as_often_as_they_say() {
        let mut rng = fastrand::Rng::with_seed(7);
        let trials = 4000;
        for n in [9, 16, 40] {
            let holds = (0..trials).filter(|_| {
                // Skewed: exponential, whose median is ln 2.
                let samples: Vec<f64> = (0..n).map(|_| -(1.0 - rng.f64()).ln()).collect();
                let found = estimate(&samples);
                (found.low..=found.high).contains(&std::f64::consts::LN_2)
            });
            let share = holds.count() as f64 / f64::from(trials);
            assert!(share > 0.94, "{n} samples: {share}");
        }
    }
}
