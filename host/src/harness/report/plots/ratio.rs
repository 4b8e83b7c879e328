//! How much faster the optimized sides are, each with its interval.

use super::scale::{LogScale, tick_label};
use super::{WIDTH, by_target, fitted, label};
use crate::harness::report::numbers;
use crate::harness::report::svg::{Anchor, Svg};
use crate::harness::results::{Entry, Measured};

const LEFT: f64 = 350.0;
const RIGHT: f64 = WIDTH - 160.0;
const TOP: f64 = 34.0;
const ROW: f64 = 24.0;
const HEADING: f64 = 32.0;
const CAP: f64 = 7.0;

/// One row a shape; none if nothing was measured.
pub fn plot(measured: &[(&Entry, &Measured)]) -> Option<Svg> {
    if measured.is_empty() {
        return None;
    }
    let groups = by_target(measured);
    let bottom = TOP + HEADING * groups.len() as f64 + ROW * measured.len() as f64 + 6.0;
    let mut svg = Svg::new(
        "ratio",
        "Speed-up of the optimized side",
        &description(measured),
        WIDTH,
        bottom + 34.0,
    );
    let scale = scale(measured);
    let axis = "baseline time / optimized time (logarithmic), median and 95 % interval";
    for tick in scale.ticks() {
        let x = scale.place(tick);
        svg.line("grid", (x, TOP), (x, bottom));
        let text = format!("{}×", tick_label(tick));
        svg.text("tick", (x, TOP - 8.0), Anchor::Middle, &text);
    }
    let even = scale.place(1.0);
    svg.line("reference", (even, TOP), (even, bottom));
    svg.text("note", (LEFT, bottom + 22.0), Anchor::Start, axis);
    if measured.iter().any(|(_, measured)| !measured.published.is_empty()) {
        svg.diamond("published", (18.0, bottom + 18.0), 5.0, "");
        let text = "published, other hardware";
        svg.text("note", (30.0, bottom + 22.0), Anchor::Start, text);
    }

    let mut y = TOP;
    for (target, entries) in groups {
        y += HEADING;
        svg.text("heading", (0.0, y - 4.0), Anchor::Start, target);
        for (entry, measured) in entries {
            row(&mut svg, scale, y + ROW / 2.0, entry, measured);
            y += ROW;
        }
    }
    Some(svg)
}

fn row(svg: &mut Svg, scale: LogScale, y: f64, entry: &Entry, measured: &Measured) {
    let ratio = measured.ratio;
    let name = fitted(&label(entry), LEFT - 28.0);
    svg.text("label", (12.0, y + 4.0), Anchor::Start, &name);
    let tip = format!(
        "{}, {}: {} ({})",
        entry.target,
        entry.shape,
        numbers::ratio(ratio.median),
        numbers::ratio_interval(ratio)
    );
    for published in &measured.published {
        let tip = format!(
            "published for {}, other hardware: {}",
            published.hardware,
            numbers::ratio(published.ratio)
        );
        svg.diamond("published", (scale.place(published.ratio), y), 5.0, &tip);
    }
    let slower = if ratio.high < 1.0 { " slower" } else { "" };
    let (even, median) = (scale.place(1.0), scale.place(ratio.median));
    svg.line(&format!("stem{slower}"), (even, y), (median, y));
    svg.circle(&format!("dot{slower}"), (median, y), 4.5, &tip);
    let (low, high) = (scale.place(ratio.low), scale.place(ratio.high));
    svg.line("whisker", (low, y), (high, y));
    for end in [low, high] {
        svg.line("whisker", (end, y - CAP), (end, y + CAP));
    }
    svg.text("value", (RIGHT + 66.0, y + 4.0), Anchor::End, &numbers::ratio(ratio.median));
    let interval = numbers::ratio_interval(ratio);
    svg.text("note", (RIGHT + 76.0, y + 4.0), Anchor::Start, &interval);
}

fn scale(measured: &[(&Entry, &Measured)]) -> LogScale {
    let all = measured.iter().flat_map(|(_, measured)| {
        let published = measured.published.iter().map(|published| published.ratio);
        [measured.ratio.low, measured.ratio.high].into_iter().chain(published)
    });
    // Even stands in every plot, with room beside it.
    let of_use = all.filter(|ratio| ratio.is_finite() && *ratio > 0.0);
    let (low, high) =
        of_use.fold((1.0, 2.0), |(low, high): (f64, f64), x| (low.min(x), high.max(x)));
    LogScale::new((low / 1.15, high * 1.15), (LEFT, RIGHT))
}

fn description(measured: &[(&Entry, &Measured)]) -> String {
    let one = |(entry, measured): &(&Entry, &Measured)| {
        format!("{}, {}: {}", entry.target, entry.shape, numbers::ratio(measured.ratio.median))
    };
    measured.iter().map(one).collect::<Vec<_>>().join("; ")
}
