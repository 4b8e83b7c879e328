use std::fs;
use std::path::Path;

use super::*;
use crate::harness::results::{Measured, Outcome, RunResults};
use crate::harness::sample;

const HARDWARE: &str = "h200_x2";

/// What the sample run is expected to reach when it has been taken over once.
fn expected() -> Expectations {
    update(&Expectations::new(HARDWARE), &sample(), false).expectations
}

fn measured(run: &mut RunResults, idx: usize) -> &mut Measured {
    match &mut run.entries[idx].outcome {
        Outcome::Measured(measured) => measured,
        other => panic!("{other:?}"),
    }
}

fn scaled(Estimate { median, low, high, n }: Estimate, factor: f64) -> Estimate {
    Estimate { median: median * factor, low: low * factor, high: high * factor, n }
}

/// The sample with the ratio and the optimized side of entry 2 made worse by a factor.
fn slower(factor: f64) -> RunResults {
    let mut run = sample();
    let entry = measured(&mut run, 2);
    entry.ratio = scaled(entry.ratio, 1.0 / factor);
    entry.optimized.time_us = scaled(entry.optimized.time_us, factor);
    let share = entry.ceiling.as_mut().unwrap();
    share.rate /= factor;
    share.share /= factor;
    run
}

fn finding_of_entry_2(run: &RunResults) -> Verdict {
    check(run, &expected()).swap_remove(2)
}

#[test]
fn a_run_holds_against_itself() {
    let mut run = sample();
    run.entries.retain(|entry| !matches!(entry.outcome, Outcome::Failed { .. }));
    let verdicts = check(&run, &expected());
    assert!(passed(&verdicts));
    let held = verdicts.iter().filter(|v| matches!(v.finding, Finding::Held(_))).count();
    assert_eq!(held, expected().entries.len());
}

#[test]
fn verdicts_read_well() {
    let mut run = slower(1.2);
    run.entries.remove(0);
    measured(&mut run, 2).mode = "single".to_owned();
    let verdicts: Vec<String> = check(&run, &expected()).iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(verdicts.join("\n"));
}

#[test]
fn a_planted_regression_fails_and_shows_both_numbers() {
    let verdict = finding_of_entry_2(&slower(1.1));
    assert!(matches!(verdict.finding, Finding::Regressed(_)), "{verdict}");
    let text = verdict.to_string();
    for number in ["4.310", "4.741", "66.8 %", "73.5 %"] {
        assert!(text.contains(number), "no {number} in {text}");
    }
    assert!(!passed(&[verdict]));
}

#[test]
fn the_band_is_the_interval_and_the_margin() {
    let expected = expected();
    let stored = expected.find(&finding_of_entry_2(&sample()).key).unwrap();
    let width = (stored.ratio.high - stored.ratio.low) / stored.ratio.median;
    let floor = 1.0 - width - MARGIN;
    for (factor, is_held) in [(0.5, true), (0.999 / floor, true), (1.001 / floor, false)] {
        let mut run = slower(factor);
        // The share has another band.
        measured(&mut run, 2).ceiling = measured(&mut sample(), 2).ceiling.clone();
        let verdict = finding_of_entry_2(&run);
        assert_eq!(matches!(verdict.finding, Finding::Held(_)), is_held, "{verdict}");
    }
}

#[test]
fn what_is_not_a_number_does_not_pass() {
    let mut run = sample();
    measured(&mut run, 2).ratio.median = f64::NAN;
    assert!(matches!(finding_of_entry_2(&run).finding, Finding::Regressed(_)));
}

#[test]
fn a_lower_share_or_another_ceiling_fails_though_the_ratio_holds() {
    let mut run = sample();
    measured(&mut run, 2).ceiling.as_mut().unwrap().share *= 0.9;
    assert!(matches!(finding_of_entry_2(&run).finding, Finding::Regressed(_)));
    measured(&mut run, 2).ceiling.as_mut().unwrap().ceiling = "dense_bf16".to_owned();
    let verdict = finding_of_entry_2(&run).to_string();
    assert!(verdict.contains("another ceiling bounds it now"), "{verdict}");
}

#[test]
fn a_run_that_holds_nothing_did_not_pass() {
    let mut run = sample();
    run.entries.retain(|entry| matches!(entry.outcome, Outcome::Skipped { .. }));
    assert!(!run.entries.is_empty() && !passed(&check(&run, &expected())), "only skipped");
    assert!(!passed(&check(&sample(), &Expectations::new(HARDWARE))), "nothing is expected");
    assert!(!passed(&[]));
}

#[test]
fn in_band_results_do_not_move_the_reference() {
    let mut stored = expected();
    // Each run is 4 % below the one before: in the band of that, but soon not of the first.
    for (step, is_held) in [(1, true), (2, false), (3, false)] {
        let run = slower(1.04_f64.powi(step));
        let held = matches!(check(&run, &stored)[2].finding, Finding::Held(_));
        assert_eq!(held, is_held, "step {step}");
        if held {
            let update = update(&stored, &run, false);
            assert!(!update.is_change());
            stored = update.expectations;
        }
    }
    assert_eq!(stored, expected());
}

#[test]
fn update_takes_what_left_the_band_and_with_force_all() {
    let key = finding_of_entry_2(&sample()).key;
    for (factor, force, moves) in
        [(1.01, false, false), (1.01, true, true), (1.5, false, true), (0.5, false, true)]
    {
        let run = slower(factor);
        let update = update(&expected(), &run, force);
        assert_eq!(update.is_change(), moves, "{factor} {force}\n{update}");
        let ratio = update.expectations.find(&key).unwrap().ratio;
        assert_eq!(ratio == measured(&mut run.clone(), 2).ratio, moves);
    }
}

#[test]
fn update_keeps_what_was_not_measured() {
    let mut run = slower(2.0);
    run.entries = vec![run.entries.swap_remove(2)];
    let update = update(&expected(), &run, false);
    assert_eq!(update.changes.len(), 1);
    assert_eq!(update.expectations.entries.len(), expected().entries.len());
}

#[test]
fn update_refuses_what_would_forgive_everything() {
    let mut run = slower(2.0);
    measured(&mut run, 2).ratio.low *= 0.5;
    let update = update(&expected(), &run, true);
    let (_, change) = &update.changes[2];
    let Change::Refused { problem } = change else { panic!("{change:?}") };
    assert!(problem.contains("at most 25 %"), "{problem}");
    assert_eq!(
        update.expectations.find(&update.changes[2].0),
        expected().find(&update.changes[2].0)
    );
}

#[test]
fn files_are_read_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = expected().save(folder.path()).unwrap();
    assert_eq!(path, folder.path().join("h200_x2.json"));
    assert_eq!(Expectations::load(folder.path(), HARDWARE).unwrap(), expected());
    assert_eq!(Expectations::known(folder.path()).unwrap(), [HARDWARE]);
}

#[test]
fn entries_are_in_order_whatever_the_run_did() {
    let mut run = sample();
    run.entries.reverse();
    let backwards = update(&Expectations::new(HARDWARE), &run, false).expectations;
    assert_eq!(backwards, expected());
}

fn load_edited(edit: impl FnOnce(&mut serde_json::Value)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut value = serde_json::to_value(expected()).unwrap();
    edit(&mut value);
    fs::write(folder.path().join("h200_x2.json"), value.to_string()).unwrap();
    let error = Expectations::load(folder.path(), HARDWARE).unwrap_err().to_string();
    error.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn bad_files_are_refused_with_path_and_field() {
    let refusals = [
        load_edited(|file| file["schema"] = 2.into()),
        load_edited(|file| file["hardware"] = "h100".into()),
        load_edited(|file| file["entries"][1]["ratio"]["median"] = "fast".into()),
        load_edited(|file| file["entries"][1]["ratio"]["low"] = 0.into()),
        load_edited(|file| file["entries"][1]["ratio"]["low"] = 0.5.into()),
        load_edited(|file| file["entries"][1]["optimized"]["time_us"]["n"] = 0.into()),
        load_edited(|file| file["entries"][1]["ceiling"]["share"] = 0.into()),
        load_edited(|file| file["entries"][1]["speed"] = 1.into()),
        load_edited(|file| file["entries"][1]["provenance"]["cuda"] = 13.into()),
        load_edited(|file| file["entries"][3] = file["entries"][1].clone()),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
}

#[test]
fn an_unknown_machine_is_told_with_those_known() {
    let folder = tempfile::tempdir().unwrap();
    expected().save(folder.path()).unwrap();
    let load = |folder: &Path, hardware| Expectations::load(folder, hardware).unwrap_err();
    let error = load(folder.path(), "l40s").to_string();
    assert!(error.starts_with("hardware 'l40s': "), "{error}");
    assert!(error.ends_with("has no expectations for it; it has h200_x2"), "{error}");
    let error = load(Path::new("no/such/folder"), "l40s").to_string();
    assert!(error.ends_with("it has none"), "{error}");
    let error = load(folder.path(), "../h200_x2").to_string();
    assert_eq!(error, "hardware '../h200_x2': letters, digits and '_' are needed");
}
