use std::fs;

use insta::{assert_snapshot, with_settings};

use super::*;
use crate::harness::expectations::{Expectations, update};
use crate::harness::results::Outcome;
use crate::harness::sample;

fn expected() -> Expectations {
    update(&Expectations::new("h200_x2"), &sample(), false).expectations
}

#[test]
fn markdown_reads_well() {
    assert_snapshot!(Report::of(&sample()).markdown);
}

#[test]
fn plots_are_as_reviewed() {
    for plot in plots::of(&sample()) {
        with_settings!({snapshot_suffix => plot.name()}, { assert_snapshot!(plot.inline()) });
    }
}

#[test]
fn the_page_needs_nothing_else_and_shows_everything() {
    let html = Report::of(&sample()).html;
    for needed_elsewhere in ["<script", "<link", "<img", "src=", "url(", "@import"] {
        assert!(!html.contains(needed_elsewhere), "{needed_elsewhere}");
    }
    // The name of the SVG language is the one address.
    assert_eq!(html.matches("http").count(), html.matches("http://www.w3.org/2000/svg").count());
    for told in [
        "needs 4 GPUs, found 2",
        "expected flag 7 &lt;seen 6&gt; &amp; gave up",
        "id=\"plot-ratio\"",
        "id=\"plot-roofline\"",
        "id=\"plot-phases\"",
        "2 × NVIDIA H200",
        "5.90× 2xB200",
    ] {
        assert!(html.contains(told), "no {told}");
    }
    assert!(!html.contains(INTERRUPTED));
    let interrupted = Report::of(&RunResults { interrupted: true, ..sample() });
    assert!(interrupted.html.contains(INTERRUPTED));
    assert!(interrupted.markdown.contains(INTERRUPTED));
}

#[test]
fn numbers_that_are_none_do_not_break_the_drawing() {
    let mut run = sample();
    for entry in &mut run.entries {
        if let Outcome::Measured(measured) = &mut entry.outcome {
            measured.optimized.time_us.median = 0.0;
            measured.ratio.median = f64::INFINITY;
            measured.baseline.read_bytes = 0;
            measured.baseline.written_bytes = 0;
        }
    }
    for plot in plots::of(&run) {
        assert!(
            !plot.inline().contains("NaN") && !plot.inline().contains("inf"),
            "{}",
            plot.name()
        );
    }
}

#[test]
fn a_run_of_nothing_is_a_report_too() {
    let mut run = sample();
    run.entries.retain(|entry| matches!(entry.outcome, Outcome::Skipped { .. }));
    run.ceilings.clear();
    let report = Report::of(&run);
    assert!(report.plots.is_empty());
    assert!(report.html.contains("<strong>0</strong> measured"));
    assert!(report.markdown.contains("0 measured, 1 skipped, 0 failed."));
}

#[test]
fn a_report_is_written_with_its_plots() {
    let folder = tempfile::tempdir().unwrap();
    let report = Report::of(&sample());
    report.write(folder.path()).unwrap();
    let paths = report.write(folder.path()).unwrap();
    assert_eq!(paths.len(), 5);
    assert_eq!(fs::read_to_string(folder.path().join("report.html")).unwrap(), report.html);
    let plot = fs::read_to_string(folder.path().join("ratio.svg")).unwrap();
    assert!(plot.contains("prefers-color-scheme: dark"), "it has its style with it");
}

#[test]
fn the_readme_is_refreshed_between_its_markers() {
    let folder = tempfile::tempdir().unwrap();
    let (readme, folder) = (folder.path().join("README.md"), folder.path());
    let text = |middle: &str| {
        format!("# Results\n<!-- results:begin -->\n{middle}<!-- results:end -->\nThe end.\n")
    };
    fs::write(&readme, text("old\n")).unwrap();
    let error = refresh_readme(&readme, folder).unwrap_err().to_string();
    assert!(error.ends_with("there are no expectations to make a table from"), "{error}");

    expected().save(folder).unwrap();
    assert!(refresh_readme(&readme, folder).unwrap());
    let table = expectations_table(&expected());
    let (heading, rows) = table.split_once("\n\n").unwrap();
    let summary = heading.replace("**h200_x2**", "<b>h200_x2</b>, 11 shapes");
    let folded = format!("<details>\n<summary>{summary}</summary>\n\n{rows}\n</details>\n");
    assert_eq!(fs::read_to_string(&readme).unwrap(), text(&folded));
    assert!(!refresh_readme(&readme, folder).unwrap(), "nothing is left to do");
}

#[test]
fn a_readme_without_its_markers_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (readme, folder) = (folder.path().join("README.md"), folder.path());
    expected().save(folder).unwrap();
    let (begin, end) = ("<!-- results:begin -->\n", "<!-- results:end -->\n");
    for (text, counts) in [
        ("no markers\n".to_owned(), "got 0 and 0"),
        (begin.to_owned(), "got 1 and 0"),
        (format!("{end}{begin}"), "got 1 and 1"),
        (format!("{begin}{end}{begin}{end}"), "got 2 and 2"),
    ] {
        fs::write(&readme, &text).unwrap();
        let error = refresh_readme(&readme, folder).unwrap_err().to_string();
        assert!(error.ends_with(counts), "{error}");
        assert_eq!(fs::read_to_string(&readme).unwrap(), text);
    }
    // A marker that is only spoken of is no marker.
    fs::write(&readme, format!("write `{}` there\n{begin}{end}", begin.trim())).unwrap();
    assert!(refresh_readme(&readme, folder).unwrap());
    assert!(fs::read_to_string(&readme).unwrap().starts_with("write"));
}
