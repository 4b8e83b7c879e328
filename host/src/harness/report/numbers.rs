//! Numbers as readers meet them: three digits that count, and a unit that fits.

use crate::harness::results::{Estimate, Range};

/// A number with three significant digits, thousands apart.
pub fn significant(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let before_point = if value.abs() < 1.0 { 1 } else { value.abs().log10() as usize + 1 };
    let text = format!("{value:.*}", 3usize.saturating_sub(before_point));
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) => (whole.to_owned(), format!(".{fraction}")),
        None => (text, String::new()),
    };
    let digits = whole.len();
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (digits - i) % 3 == 0 && digit != '-' {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &fraction
}

/// The unit that shows `us` microseconds best, and how many microseconds it is.
fn time_unit(us: f64) -> (&'static str, f64) {
    match us {
        us if us < 1e3 => ("µs", 1.0),
        us if us < 1e6 => ("ms", 1e3),
        _ => ("s", 1e6),
    }
}

/// A time.
pub fn time(us: f64) -> String {
    let (unit, scale) = time_unit(us);
    format!("{} {unit}", significant(us / scale))
}

/// The interval of a time, in the unit of its median.
pub fn time_interval(us: Estimate) -> String {
    let (_, scale) = time_unit(us.median);
    format!("{}–{}", significant(us.low / scale), significant(us.high / scale))
}

/// A ratio of times.
pub fn ratio(ratio: f64) -> String {
    format!("{}×", significant(ratio))
}

/// The interval of a ratio.
pub fn ratio_interval(ratio: Estimate) -> String {
    format!("{}–{}", significant(ratio.low), significant(ratio.high))
}

/// A part of a whole.
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", 100.0 * share) } else { "–".to_owned() }
}

/// Bytes, in powers of 1000 as rates are.
pub fn bytes(bytes: u64) -> String {
    prefixed(bytes as f64, "B")
}

/// Floating-point operations.
pub fn flops(flops: u64) -> String {
    prefixed(flops as f64, "FLOP")
}

fn prefixed(value: f64, unit: &str) -> String {
    let prefixes = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match prefixes.iter().find(|(scale, _)| value >= *scale) {
        Some((scale, prefix)) => format!("{} {prefix}{unit}", significant(value / scale)),
        None => format!("{value} {unit}"),
    }
}

/// The least and the most, or the one that both are.
pub fn range(range: Range, unit: &str) -> String {
    let (low, high) = (format!("{:.0}", range.low), format!("{:.0}", range.high));
    if low == high { format!("{low} {unit}") } else { format!("{low}–{high} {unit}") }
}

/// A commit, as short as Git shows it.
pub fn commit(commit: &str, dirty: bool) -> String {
    let is_hash = commit.len() > 12 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    let short = if is_hash { &commit[..12] } else { commit };
    format!("{short}{}", if dirty { " with changes" } else { "" })
}

/// `2 × NVIDIA H200` for two of the same.
pub fn devices(devices: &[String]) -> String {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for device in devices {
        match counted.iter_mut().find(|(name, _)| name == device) {
            Some((_, count)) => *count += 1,
            None => counted.push((device, 1)),
        }
    }
    let all = counted.iter().map(|&(name, count)| match count {
        1 => name.to_owned(),
        _ => format!("{count} × {name}"),
    });
    all.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_count() {
        for (value, text) in [
            (0.0, "0.00"),
            (0.1234, "0.12"),
            (1.0, "1.00"),
            (9.996, "10.00"),
            (12.345, "12.3"),
            (999.9, "1,000"),
            (4310.4, "4,310"),
            (1_234_567.0, "1,234,567"),
            (-4310.0, "-4,310"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(significant(value), text);
        }
    }

    #[test]
    fn units_fit() {
        assert_eq!(time(9.12), "9.12 µs");
        assert_eq!(time(2391.0), "2.39 ms");
        assert_eq!(time(2.5e6), "2.50 s");
        let estimate = Estimate { median: 2391.0, low: 999.0, high: 2400.0, n: 3 };
        assert_eq!(time_interval(estimate), "1.00–2.40");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(8_589_934_592), "8.59 GB");
        assert_eq!(flops(0), "0 FLOP");
        assert_eq!(range(Range { low: 44.4, high: 44.0 }, "°C"), "44 °C");
        assert_eq!(devices(&["A".into(), "B".into(), "A".into()]), "2 × A, B");
    }

    #[test]
    fn commits_are_short_and_say_if_changed() {
        assert_eq!(commit(&"0a".repeat(20), false), "0a0a0a0a0a0a");
        assert_eq!(commit("unknown", true), "unknown with changes");
    }
}
