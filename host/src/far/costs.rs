//! What a decode step takes that reads near and far pages: the model behind the plan.

use serde::Serialize;

/// Rates and fixed times of the machine. The defaults are measured on H200.
///
/// With `B` the bytes of K and V, all of a step's reads run at once, so the slowest counts:
///
/// ```text
/// read   = max(B_near / hbm, B_pulled / nvlink, B_host / pcie)
/// home   = start + read                            if home has any page to read
/// owner  = start + B_travelling / (hbm (1 - busy)) of each owner that is asked
/// pull   = start + read                            if nothing travels
/// travel = max(home, owner) + ask
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FarCosts {
    /// KV bytes that decode reads from its own HBM, GB/s.
    pub hbm_gb_s: f64,
    /// KV bytes that decode pulls from a peer over NVLink, GB/s.
    pub nvlink_gb_s: f64,
    /// KV bytes that decode reads from pinned host memory over PCIe, GB/s.
    pub pcie_gb_s: f64,
    /// What a decode takes beside its reads: the way to the first page, and the last merge, µs.
    pub start_us: f64,
    /// What a travelling query takes beside the owner's decode: a signal each way, and the merge
    /// of states, µs.
    pub ask_us: f64,
}

impl Default for FarCosts {
    fn default() -> Self {
        Self { hbm_gb_s: 4400.0, nvlink_gb_s: 376.0, pcie_gb_s: 51.0, start_us: 7.0, ask_us: 4.0 }
    }
}

/// Times that were measured, for [`FarCosts::fitted`]; each with its bytes of K and V.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeasuredTimes {
    /// Decodes whose pages are all near: at least two, of different sizes; the first is the batch
    /// of those that follow.
    pub near: Vec<(u64, f64)>,
    /// One that pulls all its pages from a peer.
    pub pulled: (u64, f64),
    /// One whose queries all travel to a peer that has nothing else to do.
    pub travelling: (u64, f64),
}

/// From where a step's bytes of K and V are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reads {
    /// From home's own HBM, by home.
    pub near_bytes: u64,
    /// From peers' HBM, by home.
    pub pulled_bytes: u64,
    /// From pinned host memory, by home.
    pub host_bytes: u64,
    /// From each owner's HBM, by the owner.
    pub travelling_bytes: Vec<u64>,
}

/// What a step is predicted to take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Home's own attention, µs; 0 if it has no page to read.
    pub home_us: f64,
    /// Each owner's attention, µs; 0 if it is not asked.
    pub owner_us: Vec<f64>,
    /// The whole step, µs.
    pub step_us: f64,
}

impl FarCosts {
    /// The costs under which the model comes nearest to what was measured.
    ///
    /// `start` and `hbm` are those whose relative errors, squared, are the least over all near
    /// decodes. `nvlink` follows from the pulled one, and `ask` is what the travelling one took
    /// longer than the near one. What was not measured is as in
    /// [`default`](Self::default), and so is all of it where times contradict the model: a larger
    /// decode that takes no longer.
    pub fn fitted(times: &MeasuredTimes) -> Self {
        // Minimises the sum of ((start + bytes * us_per_byte) / us - 1)^2: a linear problem in
        // start and us_per_byte.
        let [mut a, mut b, mut c, mut d, mut e] = [0.0; 5];
        for &(bytes, us) in &times.near {
            let (x, y) = (1.0 / us, bytes as f64 / us);
            a += x * x;
            b += x * y;
            c += y * y;
            d += x;
            e += y;
        }
        let determinant = a * c - b * b;
        let us_per_byte = (a * e - b * d) / determinant;
        let start_us = ((c * d - b * e) / determinant).max(0.0);
        let (pulled_bytes, pulled_us) = times.pulled;
        let pull_us = pulled_us - start_us;
        if !(us_per_byte > 0.0 && pull_us > 0.0) {
            return Self::default();
        }
        Self {
            // 1 byte per µs is 0.001 GB/s.
            hbm_gb_s: 1e-3 / us_per_byte,
            nvlink_gb_s: pulled_bytes as f64 / pull_us * 1e-3,
            start_us,
            ask_us: (times.travelling.1 - times.near[0].1).max(0.0),
            ..Self::default()
        }
    }

    /// Of a step with these reads, when owner `i` spends a share `busy[i]` of its time otherwise.
    pub(super) fn predict(&self, reads: &Reads, busy: &[f64]) -> Prediction {
        // 1 GB/s is 1000 bytes per µs.
        let us = |bytes: u64, gb_s: f64| bytes as f64 / (gb_s * 1e3);
        let read_us = us(reads.near_bytes, self.hbm_gb_s)
            .max(us(reads.pulled_bytes, self.nvlink_gb_s))
            .max(us(reads.host_bytes, self.pcie_gb_s));
        let started = |us: f64| if us > 0.0 { self.start_us + us } else { 0.0 };
        let owners = reads.travelling_bytes.iter().zip(busy);
        let owner_us: Vec<f64> =
            owners.map(|(&bytes, busy)| started(us(bytes, self.hbm_gb_s * (1.0 - busy)))).collect();
        let slowest_owner_us = owner_us.iter().copied().fold(0.0, f64::max);
        let home_us = started(read_us);
        let step_us = match slowest_owner_us > 0.0 {
            true => home_us.max(slowest_owner_us) + self.ask_us,
            false => home_us,
        };
        Prediction { home_us, owner_us, step_us }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_found_again_from_the_times_they_predict() {
        let costs =
            FarCosts { hbm_gb_s: 4000.0, nvlink_gb_s: 300.0, ask_us: 5.0, ..FarCosts::default() };
        let us = |reads: &Reads| costs.predict(reads, &[0.0]).step_us;
        let near = |near_bytes| (near_bytes, us(&Reads { near_bytes, ..Reads::default() }));
        let bytes = 1 << 28;
        let times = MeasuredTimes {
            near: [bytes, 1 << 22, 1 << 30].map(near).into(),
            pulled: (bytes, us(&Reads { pulled_bytes: bytes, ..Reads::default() })),
            travelling: (bytes, us(&Reads { travelling_bytes: vec![bytes], ..Reads::default() })),
        };
        let fitted = FarCosts::fitted(&times);
        for (got, want) in [
            (fitted.hbm_gb_s, costs.hbm_gb_s),
            (fitted.nvlink_gb_s, costs.nvlink_gb_s),
            (fitted.start_us, costs.start_us),
            (fitted.ask_us, costs.ask_us),
        ] {
            assert!((got / want - 1.0).abs() < 1e-9, "{fitted:?}");
        }
    }

    #[test]
    fn times_that_contradict_the_model_leave_the_defaults() {
        let times = MeasuredTimes {
            near: vec![(1 << 20, 50.0), (1 << 30, 40.0)],
            pulled: (1 << 20, 10.0),
            travelling: (1 << 20, 10.0),
        };
        assert_eq!(FarCosts::fitted(&times), FarCosts::default());
    }
}
