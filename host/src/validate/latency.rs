//! Latencies of decode steps: modelled where they cannot be measured, and summed up.

use super::{Latency, LatencySource, Plan};

/// µs for a decode step that reads `pages[rank]` pages of each memory, one memory after the
/// other. A page counts once per sequence that holds it.
pub(super) fn modelled_us(plan: &Plan, pages: &[u64]) -> f64 {
    let read = (0..)
        .zip(pages)
        .map(|(rank, &pages)| pages as f64 * plan.costs.read_us(plan.budgets.tier(rank)));
    plan.costs.rates.launch_us + read.sum::<f64>()
}

/// Latencies of all steps so far.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    steps_us: Vec<f64>,
    stalled_us: f64,
    measured: bool,
}

impl Latencies {
    pub fn record(&mut self, step_us: f64, stalled_us: f64, measured: bool) {
        self.steps_us.push(step_us + stalled_us);
        self.stalled_us += stalled_us;
        self.measured |= measured;
    }

    pub fn summary(&mut self, plan: &Plan) -> Latency {
        self.steps_us.sort_by(f64::total_cmp);
        Latency {
            source: if self.measured { LatencySource::Measured } else { LatencySource::Modelled },
            p50_us: percentile(&self.steps_us, 0.50),
            p99_us: percentile(&self.steps_us, 0.99),
            max_us: self.steps_us.last().copied().unwrap_or(0.0),
            budget_us: plan.budget_us(self.measured),
            stalled_us: self.stalled_us,
            rates: plan.costs.rates,
        }
    }
}

/// The smallest value that at least this share of the sorted values does not exceed; 0 of none.
pub(super) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_occurred() {
        assert_eq!(percentile(&[], 0.99), 0.0);
        assert_eq!(percentile(&[3.0], 0.5), 3.0);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.50), 50.0);
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&hundred[..10], 0.99), 10.0);
    }
}
