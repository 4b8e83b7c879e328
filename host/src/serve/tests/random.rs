//! Random loads, policies and pools: each request gets the tokens that it gets alone.

use proptest::prelude::*;

use super::*;

fn request() -> impl Strategy<Value = Request> {
    let lengths = (1usize..40, 1usize..24, 0usize..4);
    let rest =
        (0u8..3, prop_oneof![Just(0.0), 0.0..5e3], proptest::option::of(0u32..8), any::<u8>());
    (lengths, rest).prop_map(|((num_prompt, num_new, family), rest)| {
        let (priority, arrival_us, stop_token, tail) = rest;
        // Of four families, whose prompts begin alike; the first repeats one page all over.
        let mut tokens = match family {
            0 => prompt(0, SMALL.page_size).into_iter().cycle().take(num_prompt).collect(),
            family => prompt(family as u64, num_prompt),
        };
        if let Some(last) = tokens.last_mut() {
            *last = u32::from(tail) % SMALL.vocab_size;
        }
        let request = Request::new(0, tokens, num_new);
        Request { priority, arrival_us, stop_token, ..request }
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let order = prop_oneof![
        Just(Order::Arrival),
        (50.0..2e3)
            .prop_map(|ttft_us| Order::FirstTokenDeadline { ttft_us, prompt_token_us: 10.0 }),
    ];
    let batching = prop_oneof![
        1 => Just(None),
        3 => (1usize..56, order).prop_map(Some),
    ];
    (1usize..=8, batching, any::<bool>()).prop_map(|(num_slots, batching, shares_prefixes)| {
        let policy = match batching {
            None => Policy::static_batches(num_slots),
            Some((more, order)) => Policy::continuous(num_slots, num_slots + more).ordered(order),
        };
        Policy { shares_prefixes, ..policy }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_with_the_tokens_that_it_gets_alone(
        requests in proptest::collection::vec(request(), 1..14),
        policy in policy(),
        num_local in 4usize..40,
        num_host in 1usize..24,
    ) {
        let requests: Vec<_> = (0..)
            .zip(requests)
            .map(|(id, request)| Request { id: RequestId(id), ..request })
            .collect();
        let (served, _) = serve(policy, [num_local, num_host], &requests);
        prop_assert_eq!(served.requests.len(), requests.len());
        for (request, (answer, _)) in requests.iter().zip(&served.requests) {
            let fits = request.num_max_context().div_ceil(SMALL.page_size) <= num_local;
            prop_assert_eq!(answer.id, request.id.0);
            prop_assert_eq!(answer.ending.is_served(), fits, "{:?}", answer);
            if fits {
                prop_assert_eq!(&answer.tokens, &alone(request));
            }
        }
    }
}
