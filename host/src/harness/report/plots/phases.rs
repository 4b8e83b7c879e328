//! Where the time of the optimized sides goes.

use super::{HUES, WIDTH, by_target, fitted, label};
use crate::harness::report::numbers;
use crate::harness::report::svg::{Anchor, Svg};
use crate::harness::results::{Entry, Measured, Phase};

const LEFT: f64 = 350.0;
const RIGHT: f64 = WIDTH - 80.0;
const BAR: f64 = 16.0;
const ROW: f64 = 46.0;
const HEADING: f64 = 32.0;
/// Between two segments, so that they can be told apart without colour.
const GAP: f64 = 2.0;

/// Less than this part of the time, without a phase, is not shown.
const UNNAMED: f64 = 0.005;

/// One bar a shape, all equally long; none if no pair reports phases.
pub fn plot(measured: &[(&Entry, &Measured)]) -> Option<Svg> {
    let with_phases: Vec<_> =
        measured.iter().copied().filter(|(_, measured)| !measured.phases.is_empty()).collect();
    if with_phases.is_empty() {
        return None;
    }
    let groups = by_target(&with_phases);
    let height = HEADING * groups.len() as f64 + ROW * with_phases.len() as f64 + 4.0;
    let mut svg = Svg::new(
        "phases",
        "Phases of the optimized side",
        &description(&with_phases),
        WIDTH,
        height,
    );
    let mut y = 0.0;
    for (target, entries) in groups {
        y += HEADING;
        svg.text("heading", (0.0, y - 8.0), Anchor::Start, target);
        for (entry, measured) in entries {
            row(&mut svg, y, entry, measured);
            y += ROW;
        }
    }
    Some(svg)
}

fn row(svg: &mut Svg, y: f64, entry: &Entry, measured: &Measured) {
    svg.text("label", (12.0, y + 12.0), Anchor::Start, &fitted(&label(entry), LEFT - 28.0));
    let total = measured.optimized.time_us.median;
    svg.text("value", (WIDTH, y + 12.0), Anchor::End, &numbers::time(total));

    let named: f64 = measured.phases.iter().map(|phase| phase.us).sum();
    let unnamed = Phase { name: "between phases".to_owned(), us: total - named };
    let has_unnamed = unnamed.us > UNNAMED * total;
    let whole = named.max(total);
    let hues = (0..).map(|idx: usize| format!("phase hue-{}", idx % HUES));
    let segments = measured.phases.iter().zip(hues);
    let segments = segments.chain(has_unnamed.then(|| (&unnamed, "phase unnamed".to_owned())));

    let (mut x, mut caption_x) = (LEFT, LEFT);
    for (phase, class) in segments {
        let width = (RIGHT - LEFT) * phase.us / whole;
        let text = format!("{} {}", phase.name, numbers::time(phase.us));
        let tip = format!("{text}, {} of the call", numbers::percent(phase.us / total));
        svg.rect(&class, (x, y), ((width - GAP).max(1.0), BAR), &tip);
        x += width;
        svg.rect(&class, (caption_x, y + BAR + 7.0), (8.0, 8.0), &tip);
        svg.text("note", (caption_x + 13.0, y + BAR + 15.0), Anchor::Start, &text);
        caption_x += 30.0 + 6.2 * text.chars().count() as f64;
    }
}

fn description(measured: &[(&Entry, &Measured)]) -> String {
    let one = |(entry, measured): &(&Entry, &Measured)| {
        let phases = measured.phases.iter();
        let phases = phases.map(|phase| format!("{} {}", phase.name, numbers::time(phase.us)));
        let phases = phases.collect::<Vec<_>>().join(", ");
        format!("{}, {}: {phases}", entry.target, entry.shape)
    };
    measured.iter().map(one).collect::<Vec<_>>().join("; ")
}
