//! What is decided, step by step.

use super::*;

fn request(id: u64, num_prompt: usize, num_new: usize) -> Request {
    Request::new(id, prompt(id, num_prompt), num_new)
}

#[test]
fn static_batches_drain_before_the_next_one() {
    let requests = [request(0, 5, 3), request(1, 9, 1), request(2, 2, 2)];
    let (_, said) = serve(Policy::static_batches(2), [16, 1], &requests);
    insta::assert_snapshot!(said);
}

#[test]
fn continuous_batches_fill_up_and_prompts_come_in_chunks() {
    let requests = [request(0, 5, 3), request(1, 19, 2), request(2, 2, 2)];
    let (_, said) = serve(Policy::continuous(2, 8), [16, 1], &requests);
    insta::assert_snapshot!(said);
}

#[test]
fn a_full_pool_preempts_the_youngest_whose_pages_come_back() {
    let requests = [request(0, 8, 12), request(1, 8, 8)];
    let (served, said) = serve(Policy::continuous(2, 32), [6, 8], &requests);
    insta::assert_snapshot!(said);
    for request in &requests {
        assert_eq!(tokens_of(&served, request.id.0), alone(request));
    }
}

#[test]
fn a_full_pool_without_a_host_tier_computes_again() {
    let requests = [request(0, 8, 12), request(1, 8, 8)];
    let policy = Policy { shares_prefixes: false, ..Policy::continuous(2, 32) };
    let (served, said) = serve(policy, [6, 1], &requests);
    insta::assert_snapshot!(said);
    for request in &requests {
        assert_eq!(tokens_of(&served, request.id.0), alone(request));
    }
}

#[test]
fn equal_prefixes_are_computed_once() {
    let shared = prompt(7, 12);
    let own = |id: u64| {
        let prompt = [shared.clone(), prompt(id, 3)].concat();
        Request { arrival_us: id as f64, ..Request::new(id, prompt, 2) }
    };
    let (served, said) = serve(Policy::continuous(4, 64), [24, 1], &[own(0), own(1), own(2)]);
    insta::assert_snapshot!(said);
    let cached: Vec<_> = served.requests.iter().map(|(_, t)| t.num_cached_tokens).collect();
    assert_eq!(cached, [0, 12, 12]);
}

#[test]
fn a_prompt_that_is_cached_to_its_end_computes_its_last_page() {
    let again = |id: u64| Request { arrival_us: id as f64, ..Request::new(id, prompt(7, 12), 3) };
    let (served, _) = serve(Policy::continuous(4, 64), [24, 1], &[again(0), again(1)]);
    assert_eq!(served.requests[1].1.num_cached_tokens, 8);
    assert_eq!(tokens_of(&served, 0), tokens_of(&served, 1));
}

#[test]
fn greater_priority_goes_first_and_is_not_preempted() {
    let requests = [
        request(0, 8, 10),
        Request { arrival_us: 1.0, priority: 1, ..request(1, 8, 10) },
        Request { arrival_us: 2.0, ..request(2, 8, 4) },
    ];
    let (served, _) = serve(Policy::continuous(2, 32), [6, 4], &requests);
    let preemptions: Vec<_> = served.requests.iter().map(|(_, t)| t.num_preemptions).collect();
    assert!(preemptions[0] > 0 && preemptions[1] == 0, "{preemptions:?}");
    let ended: Vec<_> = served.requests.iter().map(|(_, t)| t.ended_us).collect();
    assert!(ended[1] < ended[0] && ended[1] < ended[2], "{ended:?}");
}

#[test]
fn prompts_that_can_still_be_in_time_go_first() {
    // One token takes 10 µs, so the long prompt is late already when it comes.
    let order = Order::FirstTokenDeadline { ttft_us: 500.0, prompt_token_us: 10.0 };
    let requests = [request(0, 60, 1), request(1, 4, 1), request(2, 8, 1)];
    let first = |policy| {
        let (served, said) = serve(policy, [24, 1], &requests);
        let admitted = said.lines().filter_map(|line| line.strip_prefix("admit "));
        let ids: Vec<_> = admitted.map(|line| line.split(':').next().unwrap().to_owned()).collect();
        (ids, served)
    };
    let continuous = Policy::continuous(4, 16);
    assert_eq!(first(continuous).0, ["0", "1", "2"]);
    let (ids, served) = first(continuous.ordered(order));
    assert_eq!(ids, ["2", "1", "0"], "the latest start of 2 comes before that of 1");
    assert!(served.requests.iter().all(|(answer, _)| answer.ending == Ending::Length));
}

#[test]
fn whole_contexts_take_the_room_of_others() {
    // 96 tokens are 24 pages: two contexts in 48 pages, though each request needs 2.
    let requests: Vec<_> = (0..4).map(|id| request(id, 4, 4)).collect();
    let policy = Policy { reserve: Reserve::WholeContext, ..Policy::continuous(4, 64) };
    let (_, said) = serve(policy, [48, 1], &requests);
    assert!(said.starts_with("at 0 µs\nadmit 0: 0 of 4 tokens cached\nadmit 1"), "{said}");
    assert!(said.contains("waiting: 2"), "{said}");
}
