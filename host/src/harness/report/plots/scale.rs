//! From values to places, by ratios: a factor of two is as long everywhere.

/// A logarithmic axis.
#[derive(Clone, Copy, Debug)]
pub struct LogScale {
    values: (f64, f64),
    places: (f64, f64),
}

impl LogScale {
    /// The axis that puts the first value, above 0, at the first place and the second at the second.
    pub fn new(values: (f64, f64), places: (f64, f64)) -> Self {
        Self { values, places }
    }

    /// The values at both ends.
    pub fn values(&self) -> (f64, f64) {
        self.values
    }

    /// Where a value lies; values beyond the ends lie at the ends.
    pub fn place(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        let part = (value.clamp(low, high) / low).ln() / (high / low).ln();
        self.places.0 + part * (self.places.1 - self.places.0)
    }

    /// Round values within the axis, few enough to be read: 1, 2, 5, or 1 of each power of ten.
    pub fn ticks(&self) -> Vec<f64> {
        let (low, high) = self.values;
        let powers = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
        let steps: &[f64] = if high / low > 2000.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let all = powers.flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    }
}

/// A tick's value, without digits that say nothing.
pub fn tick_label(value: f64) -> String {
    // Powers of ten are not exact below 1.
    let rounded = format!("{value:.6}");
    rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_as_long_everywhere() {
        let scale = LogScale::new((1.0, 100.0), (10.0, 210.0));
        let places = [0.1, 1.0, 10.0, 100.0, 1e9].map(|value| scale.place(value));
        assert_eq!(places, [10.0, 10.0, 110.0, 210.0, 210.0]);
    }

    #[test]
    fn ticks_are_round_and_few() {
        let labels = |low, high| -> Vec<String> {
            let ticks = LogScale::new((low, high), (0.0, 1.0)).ticks();
            ticks.into_iter().map(tick_label).collect()
        };
        assert_eq!(labels(0.4, 30.0), ["0.5", "1", "2", "5", "10", "20"]);
        assert_eq!(labels(0.001, 1000.0), ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]);
    }
}
