//! What both sides reach, under what the machine can do at most.
//!
//! A call that does `i` FLOPs for each byte it moves is bounded by memory at `i` times the
//! bandwidth, and by arithmetic at the peak of the tensor cores.

use super::scale::{LogScale, tick_label};
use super::{HUES, WIDTH, by_target, fitted, label};
use crate::harness::report::numbers;
use crate::harness::report::svg::{Anchor, Svg};
use crate::harness::results::{Ceiling, Entry, Measured, Side};

const LEFT: f64 = 62.0;
const RIGHT: f64 = WIDTH - 20.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 420.0;
const KEY_ROW: f64 = 20.0;
const LABEL_GAP: f64 = 15.0;

/// The arithmetic peak; all other ceilings are bandwidths.
const PEAK: &str = "dense_bf16";

/// Intensity in FLOP/B, and rate in TFLOP/s.
#[derive(Clone, Copy, Debug)]
struct Point {
    intensity: f64,
    rate: f64,
}

/// None for a side that does no arithmetic, or moves nothing.
fn point(side: &Side) -> Option<Point> {
    let (flops, bytes) = (side.flops as f64, (side.read_bytes + side.written_bytes) as f64);
    let point = Point { intensity: flops / bytes, rate: flops / side.time_us.median / 1e6 };
    (flops > 0.0 && bytes > 0.0 && point.rate > 0.0 && point.rate.is_finite()).then_some(point)
}

struct Pair<'a> {
    entry: &'a Entry,
    hue: usize,
    baseline: Point,
    optimized: Point,
}

/// None if no pair does arithmetic.
pub fn plot(measured: &[(&Entry, &Measured)], ceilings: &[Ceiling]) -> Option<Svg> {
    let groups = by_target(measured).into_iter().enumerate();
    let pairs: Vec<Pair<'_>> = groups
        .flat_map(|(group, (_, entries))| {
            entries.into_iter().filter_map(move |(entry, measured)| {
                let (baseline, optimized) = (&measured.baseline, &measured.optimized);
                let (baseline, optimized) = (point(baseline)?, point(optimized)?);
                Some(Pair { entry, hue: group % HUES, baseline, optimized })
            })
        })
        .collect();
    if pairs.is_empty() {
        return None;
    }
    let roofs: Vec<&Ceiling> =
        ceilings.iter().filter(|ceiling| bounds_some(ceiling, measured)).collect();
    let peak = ceilings.iter().find(|ceiling| ceiling.name == PEAK);
    let peak_rate = peak.map_or(f64::INFINITY, |peak| peak.rate);
    let (x, y) = scales(&pairs, &roofs, peak);

    let title = match ceilings {
        [] => "Rate by intensity; no ceilings were measured",
        _ => "Roofline",
    };
    let key_rows = pairs.len().div_ceil(2);
    let height = BOTTOM + 66.0 + KEY_ROW * key_rows as f64;
    let mut svg = Svg::new("roofline", title, &description(&pairs, &roofs, peak), WIDTH, height);
    axes(&mut svg, x, y);
    for roof in roofs {
        draw_roof(&mut svg, x, y, roof, peak_rate);
    }
    if let Some(peak) = peak {
        svg.line("roof", (LEFT, y.place(peak.rate)), (RIGHT, y.place(peak.rate)));
        let text = format!("{}: {} {}", peak.name, numbers::significant(peak.rate), peak.unit);
        svg.text("roof-label", (LEFT + 8.0, y.place(peak.rate) - 6.0), Anchor::Start, &text);
    }
    draw_pairs(&mut svg, x, y, &pairs);
    draw_key(&mut svg, &pairs);
    Some(svg)
}

/// Ceilings that no pair is bound by would only fill the plot.
fn bounds_some(ceiling: &Ceiling, measured: &[(&Entry, &Measured)]) -> bool {
    let is_bound = |measured: &Measured| {
        point(&measured.optimized).is_some()
            && measured.ceiling.as_ref().is_some_and(|share| share.ceiling == ceiling.name)
    };
    ceiling.name != PEAK && measured.iter().any(|(_, measured)| is_bound(measured))
}

/// The rate in TFLOP/s that a bandwidth allows.
fn roof_rate(roof: &Ceiling, intensity: f64) -> f64 {
    roof.rate * intensity / 1e3
}

fn scales(pairs: &[Pair<'_>], roofs: &[&Ceiling], peak: Option<&Ceiling>) -> (LogScale, LogScale) {
    let span = |values: &mut dyn Iterator<Item = f64>| {
        let ends = (f64::INFINITY, 0.0);
        values.fold(ends, |(low, high): (f64, f64), x| (low.min(x), high.max(x)))
    };
    let points = || pairs.iter().flat_map(|pair| [pair.baseline, pair.optimized]);
    let ridges = peak.into_iter().flat_map(|peak| {
        roofs.iter().map(|roof| peak.rate * 1e3 / roof.rate).filter(|ridge| ridge.is_finite())
    });
    let (low, high) = span(&mut points().map(|point| point.intensity).chain(ridges));
    let x = LogScale::new((low / 3.0, high * 3.0), (LEFT, RIGHT));
    let at_left = roofs.iter().map(|roof| roof_rate(roof, low / 3.0));
    let peaks = peak.into_iter().map(|peak| peak.rate);
    let (lowest, highest) = span(&mut points().map(|point| point.rate).chain(at_left).chain(peaks));
    (x, LogScale::new((lowest / 2.0, highest * 2.0), (BOTTOM, TOP)))
}

fn axes(svg: &mut Svg, x: LogScale, y: LogScale) {
    for tick in x.ticks() {
        let at = x.place(tick);
        svg.line("grid", (at, TOP), (at, BOTTOM));
        svg.text("tick", (at, BOTTOM + 18.0), Anchor::Middle, &tick_label(tick));
    }
    for tick in y.ticks() {
        let at = y.place(tick);
        svg.line("grid", (LEFT, at), (RIGHT, at));
        svg.text("tick", (LEFT - 8.0, at + 4.0), Anchor::End, &rate_tick(tick));
    }
    svg.text("note", (RIGHT, BOTTOM + 36.0), Anchor::End, "FLOP per byte moved");
    let middle = (14.0, (TOP + BOTTOM) / 2.0);
    svg.turned_text("note", middle, Anchor::Middle, -90.0, "FLOP/s");
}

/// A rate in TFLOP/s as `20 G`, `1 T`: those of a CPU are a millionth of a GPU's.
fn rate_tick(rate: f64) -> String {
    let prefixes = [(1e3, "P"), (1.0, "T"), (1e-3, "G")];
    // Ticks are not exact.
    let fitting = prefixes.into_iter().find(|(scale, _)| rate > 0.999 * scale);
    let (scale, prefix) = fitting.unwrap_or((1e-6, "M"));
    format!("{} {prefix}", tick_label(rate / scale))
}

fn show_rate(point: &Point) -> String {
    format!("{}/s", numbers::flops((1e12 * point.rate) as u64))
}

fn draw_roof(svg: &mut Svg, x: LogScale, y: LogScale, roof: &Ceiling, peak_rate: f64) {
    let (left, right) = x.values();
    let (lowest, highest) = y.values();
    // Where the line enters and leaves the plot, or meets the peak.
    let intensity_at = |rate: f64| rate * 1e3 / roof.rate;
    let from = left.max(intensity_at(lowest));
    let to = right.min(intensity_at(highest.min(peak_rate)));
    if from >= to {
        return;
    }
    let at = |intensity: f64| (x.place(intensity), y.place(roof_rate(roof, intensity)));
    let (start, end) = (at(from), at(to));
    svg.line("roof", start, end);
    let degrees = (end.1 - start.1).atan2(end.0 - start.0).to_degrees();
    let (along_x, along_y) = (degrees.to_radians().cos(), degrees.to_radians().sin());
    let text = format!("{}: {} {}", roof.name, numbers::significant(roof.rate), roof.unit);
    let label =
        (start.0 + 12.0 * along_x + 6.0 * along_y, start.1 + 12.0 * along_y - 6.0 * along_x);
    svg.turned_text("roof-label", label, Anchor::Start, degrees, &text);
}

fn draw_pairs(svg: &mut Svg, x: LogScale, y: LogScale, pairs: &[Pair<'_>]) {
    for Pair { entry, hue, baseline, optimized } in pairs {
        let [before, after] =
            [baseline, optimized].map(|point| (x.place(point.intensity), y.place(point.rate)));
        let tip = |side: &str, point: &Point| {
            format!(
                "{}, {}, {side}: {} at {} FLOP/B",
                entry.target,
                entry.shape,
                show_rate(point),
                numbers::significant(point.intensity)
            )
        };
        svg.line(&format!("way hue-{hue}"), before, after);
        svg.circle(&format!("before hue-{hue}"), before, 4.0, &tip("baseline", baseline));
        svg.circle(&format!("after hue-{hue}"), after, 5.0, &tip("optimized", optimized));
    }
    let places = |of: fn(&Pair<'_>) -> Point| -> Vec<(f64, f64)> {
        let points = pairs.iter().map(of);
        points.map(|point| (x.place(point.intensity), y.place(point.rate))).collect()
    };
    let (before, after) = (places(|pair| pair.baseline), places(|pair| pair.optimized));
    let labels = label_places(&after, &before);
    for (i, (at, label)) in after.into_iter().zip(labels).enumerate() {
        if (label.1 - at.1).abs() > 1.0 {
            svg.line("leader", (at.0 + 6.0, at.1), (label.0 - 2.0, label.1));
        }
        svg.text("point", (label.0, label.1 + 4.0), Anchor::Start, &(i + 1).to_string());
    }
}

/// Where the number of each of `points` stands: to its right, pushed up until it is free of all
/// other numbers, and of these points and `others`.
fn label_places(points: &[(f64, f64)], others: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| points[b].1.total_cmp(&points[a].1));
    let mut labels: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (x + 12.0, y)).collect();
    let mut taken: Vec<(f64, f64)> = Vec::new();
    for idx in order {
        let label = &mut labels[idx];
        loop {
            let number = taken.iter().find(|other| {
                (other.0 - label.0).abs() < 24.0 && (other.1 - label.1).abs() < LABEL_GAP - 0.1
            });
            let point = points.iter().chain(others).find(|point| {
                (point.0 - label.0 - 4.0).abs() < 12.0 && (point.1 - label.1).abs() < 9.0
            });
            label.1 = match (number, point) {
                (Some(number), _) => number.1 - LABEL_GAP,
                (None, Some(point)) => point.1 - 9.1,
                (None, None) => break,
            };
        }
        taken.push(*label);
    }
    labels
}

fn draw_key(svg: &mut Svg, pairs: &[Pair<'_>]) {
    let top = BOTTOM + 62.0;
    let columns = [LEFT, (LEFT + RIGHT) / 2.0];
    let key_rows = pairs.len().div_ceil(2);
    for (i, Pair { entry, hue, .. }) in pairs.iter().enumerate() {
        let (x, y) = (columns[i / key_rows], top + KEY_ROW * (i % key_rows) as f64);
        svg.circle(&format!("after hue-{hue}"), (x + 4.0, y - 4.0), 5.0, "");
        svg.text("point", (x + 32.0, y), Anchor::End, &(i + 1).to_string());
        let text = fitted(&format!("{}, {}", entry.target, label(entry)), 415.0);
        svg.text("label", (x + 40.0, y), Anchor::Start, &text);
    }
    let text = "open: baseline · filled: optimized";
    svg.text("note", (LEFT, BOTTOM + 36.0), Anchor::Start, text);
}

fn description(pairs: &[Pair<'_>], roofs: &[&Ceiling], peak: Option<&Ceiling>) -> String {
    let roofs = roofs.iter().copied().chain(peak).map(|ceiling| {
        format!("{} {} {}", ceiling.name, numbers::significant(ceiling.rate), ceiling.unit)
    });
    let pairs = pairs.iter().map(|Pair { entry, baseline, optimized, .. }| {
        format!(
            "{}, {}: from {} to {} at {} FLOP/B",
            entry.target,
            entry.shape,
            show_rate(baseline),
            show_rate(optimized),
            numbers::significant(optimized.intensity)
        )
    });
    roofs.chain(pairs).collect::<Vec<_>>().join("; ")
}
