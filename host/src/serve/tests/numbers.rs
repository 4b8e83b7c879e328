//! What is counted and timed.

use super::*;
use crate::serve::summary::{Percentiles, Totals};

#[test]
fn percentiles_are_by_nearest_rank() {
    assert_eq!(Percentiles::of([]), None);
    let one = Percentiles { p50: 3.0, p90: 3.0, p99: 3.0 };
    assert_eq!(Percentiles::of([3.0]), Some(one));
    let hundred = Percentiles { p50: 50.0, p90: 90.0, p99: 99.0 };
    assert_eq!(Percentiles::of((1..=100).rev().map(f64::from)), Some(hundred));
}

fn timeline(arrival_us: f64, token_us: &[f64]) -> Timeline {
    let ended_us = token_us.last().copied().unwrap_or(arrival_us);
    Timeline {
        arrival_us,
        token_us: token_us.to_vec(),
        ended_us,
        num_prompt_tokens: 10,
        num_cached_tokens: 5,
        ..Timeline::default()
    }
}

#[test]
fn summaries_follow_from_the_times() {
    let answer = |id, ending| Answer { id, tokens: vec![0; 3], ending };
    let refused = Answer { tokens: vec![], ..answer(2, Ending::Refused("no".into())) };
    let requests = [
        (answer(0, Ending::Length), timeline(100.0, &[200.0, 210.0, 240.0])),
        (answer(1, Ending::StopToken), timeline(150.0, &[1000.0, 1010.0, 1100.0])),
        (refused, timeline(160.0, &[])),
    ];
    let totals = Totals {
        step_us: 500.0,
        fill_us: 250.0,
        queue_us: 2000.0,
        num_hit_pages: 3,
        num_missed_pages: 9,
        ..Totals::default()
    };
    let summary = Summary::of(&requests, totals, Slo { ttft_us: 500.0, tpot_us: 30.0 });
    assert_eq!((summary.num_served, summary.num_refused, summary.num_failed), (2, 1, 0));
    assert_eq!((summary.duration_us, summary.num_new_tokens), (1000.0, 6));
    assert_eq!(summary.tokens_per_s, 6000.0);
    let of = |p50, p99| Some(Percentiles { p50, p90: p99, p99 });
    assert_eq!(summary.ttft_us, of(100.0, 850.0));
    assert_eq!(summary.tpot_us, of(20.0, 50.0));
    assert_eq!(summary.gap_us, of(10.0, 90.0));
    assert_eq!(summary.end_to_end_us, of(140.0, 950.0));
    assert_eq!((summary.slo_share, summary.goodput_per_s), (1.0 / 3.0, 1000.0));
    assert_eq!((summary.batch_fill, summary.mean_waiting), (0.5, 2.0));
    assert_eq!((summary.cached_token_share, summary.page_hit_rate), (0.5, 0.25));
    insta::assert_snapshot!(summary);
}

#[test]
fn a_run_counts_its_steps_tokens_and_queue() {
    let requests: Vec<_> = (0..3).map(|id| Request::new(id, prompt(id, 8), 4)).collect();
    let (served, _) = serve(Policy::continuous(2, 32), [32, 1], &requests);
    let summary = served.summary(Slo::default());
    // Two prompts, then three tokens of each; the third has its prompt beside nobody.
    assert_eq!((summary.totals.num_steps, summary.num_new_tokens), (8, 12));
    assert_eq!(summary.totals.num_computed_tokens, 3 * (8 + 3));
    assert_eq!((summary.totals.num_max_waiting, summary.num_preemptions), (1, 0));
    assert!((0.75..0.77).contains(&summary.batch_fill), "{}", summary.batch_fill);
    assert!((summary.duration_us - summary.totals.step_us).abs() < 1e-6);
    assert_eq!(serve(Policy::continuous(2, 32), [32, 1], &requests).0, served, "it repeats");
}

#[test]
fn nothing_comes_to_nothing() {
    let summary = Summary::of(&[], Totals::default(), Slo::default());
    assert_eq!((summary.tokens_per_s, summary.slo_share, summary.ttft_us), (0.0, 0.0, None));
    let json = serde_json::to_value(&summary).unwrap();
    assert_eq!(json["totals"]["num_steps"], 0);
}
