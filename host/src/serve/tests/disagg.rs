//! Several ranks give the tokens that one gives, and nothing leaks when one stops.

use super::*;
use crate::comm::World;
use crate::serve::disagg::{
    ClusterError, ClusterOptions, ClusterServed, HandOver, Roles, SimulatedNetwork, StopRank,
    serve_on,
};

const BY_LAYER: Roles = Roles::Disaggregated(HandOver::ByLayer);

fn options(roles: Roles) -> ClusterOptions {
    ClusterOptions {
        roles,
        policy: Policy::continuous(4, 32),
        prefill_policy: Policy::continuous(4, 16),
        network: None,
        stop: None,
    }
}

fn requests() -> Vec<Request> {
    let request = |id: u64| {
        let num_prompt = 5 + (id as usize * 7) % 30;
        let arrival_us = id as f64 * 100.0;
        Request { arrival_us, ..Request::new(id, prompt(id % 3, num_prompt), 3 + id as usize % 9) }
    };
    (0..12).map(request).collect()
}

/// Serves on ranks with so many pages each. Whoever is left at the end holds nothing.
fn cluster(
    size: usize,
    options: &ClusterOptions,
    num_local: usize,
    requests: &[Request],
) -> ClusterServed {
    let served = serve_on(
        &World::cpu(size),
        options,
        &|_, clock| Ok(Box::new(SimulatedEngine::new(SMALL, &[num_local, 8], clock.clone()))),
        requests.to_vec(),
    );
    let served = served.unwrap();
    for report in served.ranks.iter().flatten() {
        assert_eq!(report.num_held, 0);
    }
    assert_eq!(served.served.requests.len(), requests.len());
    served
}

fn assert_tokens_as_alone(served: &ClusterServed, requests: &[Request]) {
    for request in requests {
        let id = request.id.0;
        assert_eq!(ending_of(&served.served, id), &Ending::Length, "request {id}");
        assert_eq!(tokens_of(&served.served, id), alone(request), "request {id}");
    }
}

#[test]
fn all_roles_give_the_same_tokens() {
    let slow = SimulatedNetwork { gb_s: 0.01, latency_us: 200.0 };
    for roles in [Roles::Monolithic, Roles::Disaggregated(HandOver::AfterPrefill), BY_LAYER] {
        for (size, network) in [(2, None), (4, Some(slow))] {
            let options = ClusterOptions { network, ..options(roles) };
            let served = cluster(size, &options, 40, &requests());
            assert_tokens_as_alone(&served, &requests());
            assert!(served.ranks.iter().all(Result::is_ok));
        }
    }
}

#[test]
fn a_full_decode_rank_holds_prompts_back_and_preempts() {
    // Ten pages: the longest request needs them alone, and four at a time never fit.
    let mut requests: Vec<_> = (0..6).map(|id| Request::new(id, prompt(id, 14), 24)).collect();
    requests[0].prompt.truncate(3);
    let served = cluster(2, &options(BY_LAYER), 10, &requests);
    assert_tokens_as_alone(&served, &requests);
    let preemptions: usize = served.served.requests.iter().map(|(_, t)| t.num_preemptions).sum();
    assert!(preemptions > 0, "nobody was preempted");
}

#[test]
fn a_decode_rank_that_stops_leaves_its_requests_to_the_other() {
    let stop = Some(StopRank { rank: 3, num_steps: 4 });
    let served = cluster(4, &ClusterOptions { stop, ..options(BY_LAYER) }, 40, &requests());
    assert_tokens_as_alone(&served, &requests());
    let stopped = served.ranks[3].as_ref().unwrap_err();
    assert!(stopped.contains("it was to stop after 4 steps"), "{stopped}");
    assert!(served.ranks[..3].iter().all(Result::is_ok));
}

#[test]
fn a_prefill_rank_that_stops_leaves_its_requests_to_the_other() {
    let stop = Some(StopRank { rank: 0, num_steps: 2 });
    let served = cluster(4, &ClusterOptions { stop, ..options(BY_LAYER) }, 40, &requests());
    assert_tokens_as_alone(&served, &requests());
    assert!(served.ranks[0].is_err() && served.ranks[1..].iter().all(Result::is_ok));
}

#[test]
fn without_a_rank_to_go_on_requests_end_in_words() {
    let stop = Some(StopRank { rank: 1, num_steps: 4 });
    let served = cluster(2, &ClusterOptions { stop, ..options(BY_LAYER) }, 40, &requests());
    let mut num_failed = 0;
    for request in requests() {
        match ending_of(&served.served, request.id.0) {
            Ending::Length => {
                assert_eq!(tokens_of(&served.served, request.id.0), alone(&request));
            }
            Ending::Failed(reason) => {
                num_failed += 1;
                assert!(
                    reason.starts_with("rank 1 stopped (") || reason.starts_with("no rank"),
                    "{reason}"
                );
                assert!(reason.ends_with("no other is left for its part"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(num_failed > 0);
}

#[test]
fn what_does_not_fit_is_refused_and_worlds_are_even() {
    let mut requests = requests();
    requests.push(Request::new(90, prompt(1, 90), 20));
    requests.push(Request::new(91, prompt(1, 30), 40));
    let served = cluster(2, &options(BY_LAYER), 12, &requests);
    for id in [90, 91] {
        assert!(matches!(ending_of(&served.served, id), Ending::Refused(_)), "request {id}");
    }
    assert_tokens_as_alone(&served, &requests[..12]);
    let world = World::cpu(3);
    let none = serve_on(&world, &options(BY_LAYER), &|_, _| Err("none".to_owned()), vec![]);
    assert_eq!(none.unwrap_err(), ClusterError::WorldSize(3));
    let none = serve_on(&World::cpu(2), &options(BY_LAYER), &|_, _| Err("none".to_owned()), vec![]);
    assert!(matches!(none.unwrap_err(), ClusterError::Rank(reason) if reason.contains("none")));
}

#[test]
fn kv_sent_by_layer_keeps_decoding_from_waiting() {
    // A step takes 20 ms, and the KV of a layer 5 ms.
    let costs = SimulatedCosts { weight_bytes: 0.0, flops_per_token: 0.0, ..SMALL.costs };
    let rates = crate::kv::Rates { launch_us: 20e3, ..costs.rates };
    let model = SimulatedModel { costs: SimulatedCosts { rates, ..costs }, ..SMALL };
    let stall_us = |hand_over| {
        let network = Some(SimulatedNetwork { gb_s: 1e-4, latency_us: 10.0 });
        let prefill_policy = Policy::continuous(1, 64);
        let roles = Roles::Disaggregated(hand_over);
        let options = ClusterOptions { network, prefill_policy, ..options(roles) };
        let served = serve_on(
            &World::cpu(2),
            &options,
            &|_, clock| Ok(Box::new(SimulatedEngine::new(model, &[40, 8], clock.clone()))),
            (0..3).map(|id| Request::new(id, prompt(id, 60), 2)).collect(),
        );
        served.unwrap().served.summary(Slo::default()).request_stall_us
    };
    // A busy machine adds to it, so the quietest of some runs counts.
    let quietest = |hand_over| (0..5).map(|_| stall_us(hand_over)).fold(f64::MAX, f64::min);
    let (after, by_layer) = (quietest(HandOver::AfterPrefill), quietest(HandOver::ByLayer));
    assert!(by_layer < 0.8 * after, "by layer {by_layer}, after prefill {after}");
}
