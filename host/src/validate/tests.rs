use super::faults::{BrokenPolicy, Fault, FaultyPlane, Misrule};
use super::mock::MockPlane;
use super::*;
use crate::kv::policy::EvictionPolicy;

fn plan(options: ValidateOptions) -> Plan {
    Plan::new(options).unwrap()
}

fn default_plan() -> Plan {
    plan(ValidateOptions {
        sample: Some(1),
        invariants_every: Some(1),
        ..ValidateOptions::default()
    })
}

fn mock(plan: &Plan) -> MockPlane {
    MockPlane::new(&plan.budgets, plan.options.page_size)
}

fn run(plan: &Plan, plane: &mut dyn DataPlane) -> Report {
    replay(plan, plan.policy(), plane, &mut |_| {}).unwrap()
}

fn run_with(plan: &Plan, policy: Box<dyn EvictionPolicy>) -> Report {
    replay(plan, policy, &mut mock(plan), &mut |_| {}).unwrap()
}

fn kinds(report: &Report) -> Vec<ViolationKind> {
    report.violations_by_kind.keys().copied().collect()
}

#[test]
fn the_default_replay_passes_and_uses_every_tier() {
    for policy in [PolicyKind::Lru, PolicyKind::CostAware] {
        for gpus in [1, 2, 3] {
            let plan = plan(ValidateOptions {
                policy,
                gpus,
                sample: Some(1),
                ..ValidateOptions::default()
            });
            let report = run(&plan, &mut mock(&plan));
            assert!(report.passed(), "{policy:?}, {gpus} GPUs: {report}");
            assert_eq!(report.completed, report.requests);
            assert!(report.promotions > 0 && report.drops > 0, "{report}");
            assert!(report.tiers.iter().all(|t| t.hits > 0), "{report}");
            assert!(report.tiers[0].pages_read > 0, "{report}");
            assert!(gpus == 1 || report.tiers[1].pages_read > 0, "{report}");
            let evicts_to =
                |tier: &str| report.moved.iter().any(|m| m.from == "local" && m.to == tier);
            assert!(evicts_to("host"), "{report}");
            assert!(gpus == 1 || evicts_to("peer 1"), "{report}");
        }
    }
}

#[test]
fn equal_seeds_give_equal_reports() {
    let plan = default_plan();
    let report = run(&plan, &mut mock(&plan));
    assert_eq!(report, run(&plan, &mut mock(&plan)));
    assert_eq!(report, run(&plan, &mut mock(&plan).whole_batches()));
}

#[test]
fn other_seeds_pass_too() {
    for seed in 1..20 {
        let plan = plan(ValidateOptions { seed, ..ValidateOptions::default() });
        let report = run(&plan, &mut mock(&plan));
        assert!(report.passed(), "seed {seed}: {report}");
    }
}

#[test]
fn planted_faults_are_caught_by_their_checks() {
    use ViolationKind::{Attention, PageChecksum};
    let plan = default_plan();
    for (fault, expected) in [
        (Fault::DroppedCopy, &[Attention, PageChecksum][..]),
        (Fault::SwappedCopies, &[PageChecksum]),
        (Fault::PageIndexOffByOne, &[Attention]),
        (Fault::LastPageLenOffByOne, &[Attention]),
        (Fault::AppendOffByOne, &[Attention]),
    ] {
        let mut plane = FaultyPlane::new(mock(&plan), fault, &plan);
        let report = run(&plan, &mut plane);
        let found = kinds(&report);
        for kind in expected {
            assert!(found.contains(kind), "{fault:?}: {report}");
        }
        let others = [ViolationKind::Invariant, ViolationKind::Reference, ViolationKind::Pool];
        assert!(!others.iter().any(|kind| found.contains(kind)), "{report}");
    }
}

#[test]
fn a_policy_that_evicts_pages_in_use_is_caught() {
    let report = run_with(&default_plan(), BrokenPolicy::new(Misrule::EvictsPagesInUse));
    assert_eq!(kinds(&report), [ViolationKind::Pool]);
    let detail = &report.violations[0].detail;
    assert!(detail.starts_with("policy 'broken' chose page "), "{detail}");
}

#[test]
fn a_policy_that_never_promotes_breaks_the_latency_budget() {
    let report = run_with(&default_plan(), BrokenPolicy::new(Misrule::NeverPromotes));
    assert_eq!(kinds(&report), [ViolationKind::Latency], "{report}");
    assert_eq!(report.promotions, 0);
}

#[test]
fn a_request_larger_than_the_pool_is_refused_and_the_others_go_on() {
    let plan = plan(ValidateOptions {
        local_pages: Some(64),
        peer_pages: Some(32),
        host_pages: Some(100),
        budget_us: Some(1e6),
        ..ValidateOptions::default()
    });
    let report = run(&plan, &mut mock(&plan));
    assert!(report.passed(), "{report}");
    assert!(!report.refused.is_empty(), "{report}");
    assert_eq!(report.completed + report.refused.len() as u64, report.requests);
    assert!(report.waits.requests > 0);
    assert!(report.refused.iter().all(|r| r.pages > 196 && r.pool_pages == 196));
}

#[test]
fn a_pool_that_hardly_holds_the_largest_request_still_ends() {
    let all = default_plan();
    let largest = all.requests.iter().map(|r| all.pages(r.total_tokens())).max().unwrap() as u32;
    for host_pages in [largest - 3, largest] {
        let plan = plan(ValidateOptions {
            local_pages: Some(1),
            peer_pages: Some(2),
            host_pages: Some(host_pages),
            budget_us: Some(1e6),
            ..ValidateOptions::default()
        });
        let report = run(&plan, &mut mock(&plan));
        assert!(report.passed(), "{report}");
        assert_eq!(report.completed, report.requests);
    }
}

#[test]
fn speed_makes_requests_wait() {
    let fast = plan(ValidateOptions {
        speed: 20.0,
        budget_us: Some(1e6),
        local_pages: default_plan().budgets.local_pages.into(),
        peer_pages: default_plan().budgets.peer_pages.into(),
        host_pages: default_plan().budgets.host_pages.into(),
        ..ValidateOptions::default()
    });
    let slow = default_plan();
    let (fast, slow) = (run(&fast, &mut mock(&fast)), run(&slow, &mut mock(&slow)));
    assert!(fast.passed() && slow.passed());
    assert!(
        fast.waits.mean_ms * fast.waits.requests as f64
            > slow.waits.mean_ms * slow.waits.requests as f64
    );
    assert!(fast.virtual_s < slow.virtual_s);
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let refused = |options: ValidateOptions| Plan::new(options).unwrap_err().to_string();
    let default = ValidateOptions::default;
    let cases = [
        (
            refused(ValidateOptions { speed: 0.0, ..default() }),
            "--speed: a number above 0 is needed, got 0",
        ),
        (
            refused(ValidateOptions { speed: f64::NAN, ..default() }),
            "--speed: a number above 0 is needed, got NaN",
        ),
        (
            refused(ValidateOptions { budget_us: Some(-1.0), ..default() }),
            "--budget-us: a number above 0 is needed, got -1",
        ),
        (refused(ValidateOptions { gpus: 0, ..default() }), "--gpus: at least 1 is needed, got 0"),
        (
            refused(ValidateOptions { local_pages: Some(0), ..default() }),
            "--local-pages: at least 1 is needed, got 0",
        ),
        (
            refused(ValidateOptions { host_pages: Some(0), ..default() }),
            "--host-pages: at least 1 is needed, got 0",
        ),
        (
            refused(ValidateOptions { sample: Some(0), ..default() }),
            "--sample: at least 1 is needed, got 0",
        ),
        (
            refused(ValidateOptions { page_size: 24, ..default() }),
            "--page-size: 1, 2, 4, 8, 16, 32 or 64 is needed, got 24",
        ),
    ];
    for (message, expected) in cases {
        assert_eq!(message, expected);
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    let of_file = || ValidateOptions { trace: Some(path.clone()), ..default() };
    assert!(refused(of_file()).starts_with("cannot open trace "));
    std::fs::write(&path, "").unwrap();
    assert_eq!(refused(of_file()), "the trace holds no requests");
    std::fs::write(&path, "\n{\"timestamp\": 0}\n").unwrap();
    let message = refused(of_file());
    assert!(message.ends_with("line 2: field 'input_length' is missing"), "{message}");
}

#[test]
fn the_report_reads_well() {
    let plan = plan(ValidateOptions {
        max_requests: Some(40),
        sample: Some(2),
        ..ValidateOptions::default()
    });
    insta::assert_snapshot!(run(&plan, &mut mock(&plan)));
}
