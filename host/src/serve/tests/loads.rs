//! Loads follow from their seeds, and traces from their files.

use crate::kv::trace::{GeneratorOptions, generate};
use crate::serve::load::{LogNormal, PoissonLoad, TraceLoad};

const LOAD: PoissonLoad = PoissonLoad {
    seed: 1,
    num_requests: 2000,
    rate_per_s: Some(50.0),
    prompt: LogNormal { median: 100.0, sigma: 0.8, max: 400 },
    output: LogNormal::exactly(7),
    num_families: 2,
    num_shared_tokens: 16,
    vocab_size: 40,
};

#[test]
fn poisson_loads_are_seeded_and_have_their_rate_and_lengths() {
    let requests = LOAD.requests();
    assert_eq!(requests, LOAD.requests());
    assert_ne!(requests[..9], PoissonLoad { seed: 2, ..LOAD }.requests()[..9]);
    let last_us = requests.last().unwrap().arrival_us;
    assert!((last_us / 1e6 - 40.0).abs() < 4.0, "{last_us}");
    assert!(requests.is_sorted_by(|a, b| a.arrival_us <= b.arrival_us));
    let mut lengths: Vec<_> = requests.iter().map(|request| request.prompt.len()).collect();
    lengths.sort_unstable();
    assert!((80..120).contains(&lengths[1000]) && lengths[1999] == 400, "{}", lengths[1000]);
    assert!(requests.iter().all(|request| request.num_max_new_tokens == 7));
    let mut beginnings: Vec<_> = requests.iter().map(|request| &request.prompt[..16]).collect();
    beginnings.sort();
    beginnings.dedup();
    assert_eq!(beginnings.len(), 2);
    let at_once = PoissonLoad { rate_per_s: None, ..LOAD }.requests();
    assert!(at_once.iter().all(|request| request.arrival_us == 0.0));
}

#[test]
fn prompts_of_a_trace_begin_alike_where_their_ids_do() {
    let trace = generate(&GeneratorOptions { num_requests: 40, ..GeneratorOptions::default() });
    let text: String =
        trace.iter().map(|request| serde_json::to_string(request).unwrap() + "\n").collect();
    let load = TraceLoad { speed: 2.0, shrink: 8, num_max_requests: 30, vocab_size: 1 << 20 };
    let requests = load.requests(text.as_bytes()).unwrap();
    assert_eq!(requests.len(), 30);
    for (a, request_a) in trace.iter().zip(&requests) {
        assert_eq!(request_a.prompt.len(), (a.input_length as usize).div_ceil(8));
        assert_eq!(request_a.arrival_us, a.timestamp_ms as f64 * 500.0);
        for (b, request_b) in trace.iter().zip(&requests) {
            let blocks = a.hash_ids.iter().zip(&b.hash_ids).take_while(|(a, b)| a == b).count();
            let [a, b] = [&request_a.prompt, &request_b.prompt];
            let tokens = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            assert_eq!(tokens, (blocks * 64).min(a.len()).min(b.len()));
        }
    }
    let broken = load.requests("{}\n".as_bytes()).unwrap_err();
    assert_eq!(broken.to_string(), "line 1: field 'timestamp' is missing");
}
