//! A small seeded trace in the same format: conversations that share prefixes and come in bursts.

use super::{PREFIX_BLOCK_TOKENS, TraceRequest};

/// What to generate. The defaults make a trace that a CPU replays in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GeneratorOptions {
    /// Equal seeds give equal traces.
    pub seed: u64,
    /// Requests.
    pub num_requests: usize,
    /// Mean ms between bursts of arrivals.
    pub burst_every_ms: u64,
    /// Mean requests of a burst.
    pub burst_requests: u32,
    /// Median prompt tokens that a turn of a conversation adds.
    pub median_turn_tokens: f64,
    /// Median tokens to decode.
    pub median_output_tokens: f64,
    /// No prompt is longer.
    pub max_input_tokens: u32,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            num_requests: 144,
            burst_every_ms: 600,
            burst_requests: 4,
            median_turn_tokens: 500.0,
            median_output_tokens: 40.0,
            max_input_tokens: 4096,
        }
    }
}

/// Spread of the log-normal lengths.
const LENGTH_SIGMA: f64 = 0.8;

/// Odds that a request continues a conversation instead of starting one.
const CONTINUES: f64 = 0.6;

/// Odds that a new conversation starts with the system prompt all others share.
const HAS_SYSTEM_PROMPT: f64 = 0.8;

/// A prompt so far, from which the next turn goes on.
struct Conversation {
    full_blocks: Vec<u64>,
}

/// A trace whose prompts grow turn by turn: some continue an earlier conversation, most of the
/// others share one system prompt.
pub fn generate(options: &GeneratorOptions) -> Vec<TraceRequest> {
    let mut random = SplitMix64(options.seed);
    let mut next_id = 0;
    let mut new_id = || {
        next_id += 1;
        next_id - 1
    };
    let system_prompt = new_id();
    let mut conversations: Vec<Conversation> = Vec::new();
    let mut timestamp_ms = 0;
    let mut left_in_burst = 0;
    let mut requests = Vec::with_capacity(options.num_requests);
    while requests.len() < options.num_requests {
        if left_in_burst == 0 {
            if !requests.is_empty() {
                timestamp_ms += 1 + random.below(2 * options.burst_every_ms.max(1));
            }
            left_in_burst = 1 + random.below(2 * u64::from(options.burst_requests.max(1)) - 1);
        }
        left_in_burst -= 1;

        let continued = if conversations.is_empty() || random.unit() >= CONTINUES {
            None
        } else {
            let count = conversations.len() as u64;
            Some(random.below(count) as usize)
        };
        let mut hash_ids = match continued {
            Some(index) => conversations[index].full_blocks.clone(),
            None if random.unit() < HAS_SYSTEM_PROMPT => vec![system_prompt],
            None => Vec::new(),
        };
        let shared_tokens = hash_ids.len() as u32 * PREFIX_BLOCK_TOKENS;
        let turn = random.log_normal(options.median_turn_tokens);
        let input_length =
            (shared_tokens + turn).min(options.max_input_tokens).max(shared_tokens + 1);
        hash_ids.resize_with(input_length.div_ceil(PREFIX_BLOCK_TOKENS) as usize, &mut new_id);
        let full_blocks = hash_ids[..(input_length / PREFIX_BLOCK_TOKENS) as usize].to_vec();
        let can_go_on =
            (full_blocks.len() as u32 + 1) * PREFIX_BLOCK_TOKENS <= options.max_input_tokens;
        match continued {
            Some(index) if can_go_on => conversations[index] = Conversation { full_blocks },
            Some(index) => {
                conversations.swap_remove(index);
            }
            None if can_go_on => conversations.push(Conversation { full_blocks }),
            None => {}
        }
        requests.push(TraceRequest {
            timestamp_ms,
            input_length,
            output_length: random.log_normal(options.median_output_tokens),
            hash_ids,
        });
    }
    requests
}

/// Steele, Lea and Flood's SplitMix64: enough randomness for a workload, in four lines.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..bound.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// At least 1 token.
    fn log_normal(&mut self, median: f64) -> u32 {
        // Box-Muller.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
        ((median * (LENGTH_SIGMA * normal).exp()).round() as u32).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::TraceReader;
    use super::*;

    #[test]
    fn is_seeded() {
        let options = GeneratorOptions::default();
        assert_eq!(generate(&options), generate(&options));
        let other = GeneratorOptions { seed: 1, ..options };
        assert_ne!(generate(&options), generate(&other));
    }

    #[test]
    fn is_a_valid_trace_with_bursts_and_shared_prefixes() {
        for seed in 0..20 {
            let options =
                GeneratorOptions { seed, num_requests: 200, ..GeneratorOptions::default() };
            let trace = generate(&options);
            let text: String = trace
                .iter()
                .map(|request| serde_json::to_string(request).unwrap() + "\n")
                .collect();
            let read: Result<Vec<_>, _> = TraceReader::new(text.as_bytes()).collect();
            assert_eq!(read.unwrap(), trace);

            let bursts: HashSet<u64> = trace.iter().map(|request| request.timestamp_ms).collect();
            assert!((2..150).contains(&bursts.len()), "{} bursts", bursts.len());
            let mut seen = HashSet::new();
            let ids: Vec<u64> = trace.iter().flat_map(|r| r.hash_ids.clone()).collect();
            let repeated = ids.iter().filter(|&&id| !seen.insert(id)).count();
            assert!(repeated * 4 > ids.len(), "{repeated} of {} ids", ids.len());
            assert!(trace.iter().all(|r| r.input_length <= options.max_input_tokens));
        }
    }
}
