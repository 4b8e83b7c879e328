//! The report as a table for people.

use std::fmt::{self, Display, Formatter};

use super::{LatencySource, Report};

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write_run(f)?;
        self.write_tiers(f)?;
        self.write_moves(f)?;
        self.write_latency(f)?;
        self.write_checks(f)
    }
}

impl Report {
    fn write_run(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "trace       {}", self.trace)?;
        writeln!(
            f,
            "requests    {} ({} completed, {} refused), {} tokens decoded in {} steps, {:.1} s of virtual time",
            self.requests,
            self.completed,
            self.refused.len(),
            self.tokens_decoded,
            self.steps,
            self.virtual_s
        )?;
        for refused in self.refused.iter().take(3) {
            writeln!(
                f,
                "  refused   request {} needs {} pages, the pool has {}",
                refused.request, refused.pages, refused.pool_pages
            )?;
        }
        writeln!(
            f,
            "waits       {} requests waited for pages: {:.0} ms on average, {:.0} ms at most",
            self.waits.requests, self.waits.mean_ms, self.waits.max_ms
        )?;
        writeln!(
            f,
            "pages       {} tokens, {}; policy {}",
            self.page_size,
            bytes(self.page_bytes),
            self.policy
        )
    }

    fn write_tiers(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<12}{:>10}{:>12}{:>10}{:>12}{:>16}",
            "tier", "pages", "hits", "hit rate", "dropped", "pages read"
        )?;
        for tier in &self.tiers {
            writeln!(
                f,
                "{:<12}{:>10}{:>12}{:>9.1}%{:>12}{:>16}",
                tier.tier,
                tier.pages,
                tier.hits,
                100.0 * tier.hit_rate,
                tier.dropped,
                tier.pages_read
            )?;
        }
        let sum = |of: fn(&super::TierReport) -> u64| self.tiers.iter().map(of).sum::<u64>();
        writeln!(
            f,
            "{:<12}{:>10}{:>12}{:>9.1}%{:>12}{:>16}",
            "all",
            sum(|tier| u64::from(tier.pages)),
            sum(|tier| tier.hits),
            100.0 * self.hit_rate,
            self.drops,
            sum(|tier| tier.pages_read)
        )
    }

    fn write_moves(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<24}{:>12}{:>14}", "moved", "pages", "bytes")?;
        for direction in &self.moved {
            let name = format!("{} -> {}", direction.from, direction.to);
            writeln!(f, "{name:<24}{:>12}{:>14}", direction.pages, bytes(direction.bytes))?;
        }
        writeln!(
            f,
            "{} evictions ({} of them drops), {} promotions",
            self.evictions, self.drops, self.promotions
        )
    }

    fn write_latency(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let latency = &self.latency;
        let source = match latency.source {
            LatencySource::Measured => "measured with events",
            LatencySource::Modelled => "modelled, not measured",
        };
        writeln!(
            f,
            "\ndecode step ({source})\n  p50 {:.1} µs, p99 {:.1} µs, max {:.1} µs; budget for p99 {:.1} µs; {:.1} µs stalled for pages in all",
            latency.p50_us, latency.p99_us, latency.max_us, latency.budget_us, latency.stalled_us
        )?;
        let rates = &latency.rates;
        writeln!(
            f,
            "  cost model: HBM {} GB/s, NVLink {} GB/s, PCIe {} GB/s, {} µs for launches, prefill {} tokens/s",
            rates.hbm_gb_s,
            rates.nvlink_gb_s,
            rates.pcie_gb_s,
            rates.launch_us,
            rates.prefill_tokens_s
        )
    }

    fn write_checks(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let checks = &self.checks;
        writeln!(
            f,
            "\nchecks\n  {} attention outputs against the oracle, one in {}\n  {} pages after a move and {} at the end against their tokens, one in {}\n  invariants of the pool, {} times",
            checks.attention_outputs,
            self.sample_outputs,
            checks.moved_pages,
            checks.cached_pages,
            self.sample_pages,
            checks.invariants
        )?;
        if self.passed() {
            return writeln!(f, "no violations");
        }
        writeln!(f, "{} VIOLATIONS", self.num_violations)?;
        for (kind, count) in &self.violations_by_kind {
            writeln!(f, "  {count} x {kind}, the first:")?;
            for violation in self.violations.iter().filter(|v| v.kind == *kind) {
                writeln!(f, "    step {}: {}", violation.step, violation.detail)?;
            }
        }
        Ok(())
    }
}

fn bytes(count: u64) -> String {
    let mut amount = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1024.0 {
            let digits = if unit == "B" { 0 } else { 1 };
            return format!("{amount:.digits$} {unit}");
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_are_shown_in_binary_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(4096), "4.0 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
    }
}
