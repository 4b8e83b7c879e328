//! What goes wrong, and who notices.

use super::*;
use crate::serve::policy::PolicyError;
use crate::serve::scheduler::SetupError;

fn refusal(request: Request) -> String {
    let (served, _) = serve(Policy::continuous(2, 32), [16, 1], std::slice::from_ref(&request));
    match ending_of(&served, request.id.0) {
        Ending::Refused(reason) => reason.clone(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn what_could_not_be_served_alone_is_refused_in_words() {
    assert_eq!(refusal(Request::new(0, vec![], 1)), "prompt: needs at least 1 token, got 0");
    assert_eq!(refusal(Request::new(0, vec![1], 0)), "num_max_new_tokens: needs at least 1, got 0");
    assert_eq!(
        refusal(Request::new(0, prompt(0, 90), 8)),
        "context: 90 prompt tokens and 8 new ones need 97, the model has 96"
    );
    assert_eq!(
        refusal(Request::new(0, prompt(0, 60), 6)),
        "KV: 65 tokens need 17 pages, the pool has 16 in all"
    );
    let mut hot = Request::new(0, vec![1], 1);
    hot.sampling.temperature = -1.0;
    assert_eq!(refusal(hot), "sampling: temperature: needs 0 or a positive number, got -1");
}

#[test]
fn what_never_arrives_is_refused_and_holds_nobody_up() {
    for never in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let arrives = |id, arrival_us| Request { arrival_us, ..Request::new(id, prompt(id, 4), 2) };
        let requests = [arrives(0, never), arrives(1, 50.0)];
        let (served, _) = serve(Policy::continuous(2, 32), [16, 1], &requests);
        let reason = format!("arrival_us: needs a finite number, got {never}");
        assert_eq!(ending_of(&served, 0), &Ending::Refused(reason));
        assert_eq!(tokens_of(&served, 1), alone(&requests[1]));
        assert!(served.summary(Slo::default()).duration_us.is_finite());
    }
}

#[test]
fn the_largest_request_that_fits_is_served() {
    let request = Request::new(0, prompt(0, 60), 5);
    let (served, _) = serve(Policy::continuous(2, 32), [16, 1], std::slice::from_ref(&request));
    assert_eq!(tokens_of(&served, 0), alone(&request));
}

#[test]
fn an_id_is_taken_while_its_request_is_here() {
    let request = |arrival_us| Request { arrival_us, ..Request::new(0, prompt(0, 4), 4) };
    let (served, _) =
        serve(Policy::continuous(2, 32), [16, 1], &[request(0.0), request(0.5), request(1e6)]);
    let endings: Vec<_> = served.requests.iter().map(|(answer, _)| &answer.ending).collect();
    let refused =
        Ending::Refused("id: needs one that no request under way has, got request 0".into());
    assert_eq!(endings.iter().filter(|ending| ***ending == refused).count(), 1);
    assert_eq!(endings.iter().filter(|ending| ***ending == Ending::Length).count(), 2);
}

#[test]
fn one_requests_fault_ends_it_alone() {
    let requests = [
        Request::new(0, prompt(0, 10), 12),
        Request::new(1, prompt(1, 10), 12),
        // A token that the model does not have.
        Request::new(2, vec![3, 99], 4),
        Request::new(3, prompt(3, 10), 12),
    ];
    let (clock, num_pages) = (Clock::simulated(), [32, 1]);
    let mut engine = SimulatedEngine::new(SMALL, &num_pages, clock.clone());
    engine.break_request(RequestId(1), 15);
    let mut server = Server::new(&mut engine, Policy::continuous(4, 32), clock).unwrap();
    let served = server.serve(requests.to_vec()).unwrap();
    assert_nothing_held(server.scheduler(), num_pages[0]);
    for id in [0, 3] {
        assert_eq!(tokens_of(&served, id), alone(&requests[id as usize]));
    }
    let failed = |reason: &str| Ending::Failed(reason.to_owned());
    assert_eq!(ending_of(&served, 2), &failed("request 2: tokens: needs below 40, got 99"));
    assert_eq!(
        ending_of(&served, 1),
        &failed("request 1: fault: needs fewer than 15 tokens, got 15")
    );
    // It keeps what it was given until then.
    assert_eq!(tokens_of(&served, 1), &alone(&requests[1])[..5]);
    let summary = served.summary(Slo::default());
    assert_eq!((summary.num_served, summary.num_failed), (2, 2));
}

#[test]
fn a_failing_engine_ends_all_in_words() {
    let (clock, num_pages) = (Clock::simulated(), [8, 1]);
    let mut engine = SimulatedEngine::new(SMALL, &num_pages, clock.clone());
    engine.break_after(3);
    let mut server = Server::new(&mut engine, Policy::continuous(2, 32), clock).unwrap();
    let late = Request { arrival_us: 1e6, ..Request::new(3, prompt(3, 4), 2) };
    let mut requests: Vec<_> = (0..3).map(|id| Request::new(id, prompt(id, 8), 9)).collect();
    requests.push(late);
    let served = server.serve(requests).unwrap();
    assert_nothing_held(server.scheduler(), num_pages[0]);
    for id in 0..4 {
        let reason = "the engine failed: it was to fail at this step";
        assert_eq!(ending_of(&served, id), &Ending::Failed(reason.to_owned()));
    }
}

#[test]
fn policies_that_cannot_work_are_refused() {
    let refused = |policy, num_pages: [usize; 2]| {
        let mut engine = SimulatedEngine::new(SMALL, &num_pages, Clock::simulated());
        match Server::new(&mut engine, policy, Clock::simulated()).map(drop) {
            Err(SetupError::Policy(error)) => error,
            other => panic!("not refused: {other:?}"),
        }
    };
    assert_eq!(refused(Policy::static_batches(0), [8, 1]), PolicyError::NoSlots);
    assert_eq!(
        refused(Policy::static_batches(9), [8, 1]).to_string(),
        "num_slots: needs at most 8, which the engine takes, got 9"
    );
    assert_eq!(
        refused(Policy::continuous(8, 8), [8, 1]).to_string(),
        "num_max_tokens_per_step: needs more than the 8 slots, and at most the engine's 64, got 8"
    );
    let whole = Policy { reserve: Reserve::WholeContext, ..Policy::static_batches(2) };
    assert_eq!(
        refused(whole, [23, 1]).to_string(),
        "whole contexts: one needs 24 pages, the pool has 23"
    );
    let mut engine = SimulatedEngine::new(SMALL, &[0, 1], Clock::simulated());
    let error = Server::new(&mut engine, Policy::static_batches(2), Clock::simulated());
    assert!(matches!(error.map(drop), Err(SetupError::Pool(_))));
}
