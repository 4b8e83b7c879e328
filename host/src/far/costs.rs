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
        Self { hbm_gb_s: 4500.0, nvlink_gb_s: 372.0, pcie_gb_s: 51.0, start_us: 8.0, ask_us: 4.0 }
    }
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
