//! What it costs to read, move and recompute a page: one stated model for policies and for the
//! CPU, where nothing can be measured.

use serde::Serialize;

use super::Tier;

/// Rates of the machine the model stands for. The defaults are measured on H200.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Bytes that a kernel reads from its own HBM, GB/s.
    pub hbm_gb_s: f64,
    /// Bytes that a kernel or a copy pulls from a peer over NVLink, GB/s.
    pub nvlink_gb_s: f64,
    /// Bytes that a kernel or a copy reads from pinned host memory over PCIe, GB/s.
    pub pcie_gb_s: f64,
    /// Fixed cost of a decode step's launches, µs.
    pub launch_us: f64,
    /// Prompt tokens computed per second when nothing precedes them.
    pub prefill_tokens_s: f64,
    /// Context at which attention doubles the cost of computing a prompt token.
    pub prefill_doubles_at_tokens: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            hbm_gb_s: 4500.0,
            nvlink_gb_s: 375.0,
            pcie_gb_s: 50.0,
            launch_us: 10.0,
            prefill_tokens_s: 20_000.0,
            prefill_doubles_at_tokens: 32_768.0,
        }
    }
}

/// [`Rates`] applied to pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CostModel {
    /// The machine.
    pub rates: Rates,
    /// Bytes of one page.
    pub page_bytes: u64,
    /// Tokens of one page.
    pub page_size: u32,
}

impl CostModel {
    fn rate_gb_s(&self, tier: Tier) -> f64 {
        match tier {
            Tier::Local => self.rates.hbm_gb_s,
            Tier::Peer(_) => self.rates.nvlink_gb_s,
            Tier::Host => self.rates.pcie_gb_s,
        }
    }

    /// µs for a kernel on rank 0 to read one page that lies in `tier`.
    pub fn read_us(&self, tier: Tier) -> f64 {
        // 1 GB/s is 1000 bytes per µs.
        self.page_bytes as f64 / (self.rate_gb_s(tier) * 1e3)
    }

    /// µs to copy one page between two tiers: the slower side's rate.
    pub fn move_us(&self, from: Tier, to: Tier) -> f64 {
        self.read_us(from).max(self.read_us(to))
    }

    /// µs to compute a page again that starts `position` pages into its prompt.
    pub fn recompute_us(&self, position: u32) -> f64 {
        let context = f64::from(position) * f64::from(self.page_size);
        f64::from(self.page_size) * 1e6 / self.rates.prefill_tokens_s
            * (1.0 + context / self.rates.prefill_doubles_at_tokens)
    }

    /// µs to compute the first `num_pages` pages of a prompt.
    pub fn prefill_us(&self, num_pages: u32) -> f64 {
        (0..num_pages).map(|position| self.recompute_us(position)).sum()
    }
}
