//! Schedules on real models: whatever the batches, a request gets the tokens that it gets alone, which
//! of a checkpoint are those that transformers gives.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farpage::comm::{Rank, World};
use farpage::device::Device;
use farpage::kv::Location;
use farpage::model::config::{FeedForward, NamedShape};
use farpage::model::engine::{Engine, RequestId, Sampling, Step, StepSequence};
use farpage::model::weights::{Checkpoint, Seeded, WeightSource};
use farpage::model::{DeviceEngine, EngineOptions, ModelConfig, Transformer};
use farpage::serve::disagg::{
    ClusterOptions, ClusterServed, HandOver, Roles, SimulatedNetwork, StopRank, serve_on,
};
use farpage::serve::{Clock, Ending, Policy, Request, Served, Server, alone};
use half::bf16;
use safetensors::SafeTensors;

const PAGE_SIZE: usize = 16;
const NUM_MAX_POSITIONS: u32 = 256;

const OPTIONS: EngineOptions = EngineOptions {
    num_max_sequences: 8,
    num_max_tokens_per_step: 128,
    page_size: PAGE_SIZE as u32,
    device_pages: 48,
    host_pages: 16,
    uses_graphs: true,
};

fn fixture(family: &str) -> PathBuf {
    Path::new("tests/checkpoints").join(family)
}

fn engine(
    device: &Device,
    config: ModelConfig,
    source: &dyn WeightSource,
    options: EngineOptions,
) -> DeviceEngine {
    let stream = Arc::new(device.new_stream().unwrap());
    let model = Transformer::load(&stream, config, source, NUM_MAX_POSITIONS, &mut |_| {}).unwrap();
    DeviceEngine::new(stream, model, options).unwrap()
}

fn of_fixture(family: &str, device: &Device, options: EngineOptions) -> DeviceEngine {
    let folder = fixture(family);
    let config = ModelConfig::from_folder(&folder).unwrap();
    engine(device, config, &Checkpoint::open(&folder).unwrap(), options)
}

/// Random weights, whose greedy choices are close: an engine that is not batch-invariant would turn
/// some.
fn seeded(config: &ModelConfig, device: &Device, options: EngineOptions) -> DeviceEngine {
    let source = Seeded::new(7, config.num_layers());
    engine(device, config.clone(), &source, options).batch_invariant()
}

/// On a GPU the kernels of large models, with heads of 128; on the CPU what it does in seconds.
fn shapes(device: &Device) -> Vec<ModelConfig> {
    if !device.is_cuda() {
        return vec![NamedShape::Tiny.config()];
    }
    let dense = NamedShape::Llama8B.config();
    let dense = ModelConfig {
        vocab_size: 8192,
        feed_forward: vec![FeedForward::Dense { intermediate: 14_336 }; 3],
        ..dense
    };
    let experts = NamedShape::QwenMoe.config();
    let feed_forward = experts.feed_forward[..3].to_vec();
    vec![dense, ModelConfig { vocab_size: 8192, feed_forward, ..experts }]
}

/// Prompts of a checkpoint and what transformers goes on with.
fn references(family: &str) -> Vec<(Vec<u32>, Vec<u32>)> {
    let bytes = fs::read(fixture(family).join("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tokens = |name: String| -> Vec<u32> {
        let words = file.tensor(&name).unwrap().data().chunks_exact(4);
        words.map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    };
    (0..2).map(|i| (tokens(format!("prompt.{i}")), tokens(format!("tokens.{i}")))).collect()
}

/// Prompts of a seed; half of them begin alike.
fn requests(config: &ModelConfig, lens: &[(usize, usize)]) -> Vec<Request> {
    let mut rng = fastrand::Rng::with_seed(3);
    let shared: Vec<u32> = (0..128).map(|_| rng.u32(..config.vocab_size)).collect();
    let request = |(id, &(num_prompt, num_new)): (usize, &(usize, usize))| {
        let num_shared = if id % 2 == 0 { num_prompt / 2 } else { 0 };
        let own = (num_shared..num_prompt).map(|_| rng.u32(..config.vocab_size));
        let prompt = shared[..num_shared].iter().copied().chain(own).collect();
        Request::new(id as u64, prompt, num_new)
    };
    lens.iter().enumerate().map(request).collect()
}

/// Serves, and counts pages: none is held at the end.
fn serve(engine: &mut DeviceEngine, policy: Policy, requests: &[Request]) -> Served {
    let num_local = engine.pages().num_pages()[0];
    let mut server = Server::new(engine, policy, Clock::wall()).unwrap();
    let served = server.serve(requests.to_vec()).unwrap();
    let pool = server.scheduler().pool();
    pool.check_invariants().unwrap();
    assert_eq!(pool.num_sequences(), 0);
    assert_eq!((pool.num_free(0) + pool.num_evictable(0)) as usize, num_local);
    assert_eq!(served.requests.len(), requests.len());
    served
}

fn assert_tokens(served: &Served, want: &[Vec<u32>], what: &str) {
    for ((answer, _), want) in served.requests.iter().zip(want) {
        assert!(answer.ending.is_served(), "{what}: {answer:?}");
        assert_eq!(&answer.tokens, want, "{what}: request {}", answer.id);
    }
}

fn num_preemptions(served: &Served) -> usize {
    served.requests.iter().map(|(_, timeline)| timeline.num_preemptions).sum()
}

/// Static and continuous batches, prompts whole and in chunks.
fn policies() -> [(&'static str, Policy); 3] {
    [
        ("static", Policy::static_batches(3)),
        ("continuous", Policy::continuous(4, 128)),
        ("continuous, in chunks", Policy::continuous(4, 13)),
    ]
}

fn checkpoints_are_served(device: &Device) {
    for family in ["llama", "qwen2_moe"] {
        let references = references(family);
        let twice = references.iter().chain(&references).enumerate();
        let requests: Vec<Request> = twice
            .map(|(id, (prompt, tokens))| Request::new(id as u64, prompt.clone(), tokens.len()))
            .collect();
        let want: Vec<Vec<u32>> =
            references.iter().chain(&references).map(|(_, tokens)| tokens.clone()).collect();
        let mut engine = of_fixture(family, device, OPTIONS);
        let [fixed, .., in_chunks] = policies();
        for (name, policy) in [fixed, in_chunks] {
            assert_tokens(&serve(&mut engine, policy, &requests), &want, name);
        }
    }
}

#[test]
fn checkpoints_give_the_tokens_of_transformers_by_every_schedule() {
    checkpoints_are_served(&Device::cpu());
}

#[test]
#[ignore = "needs 1 GPU"]
fn checkpoints_give_the_tokens_of_transformers_by_every_schedule_on_a_gpu() {
    checkpoints_are_served(&Device::cuda(0).unwrap());
}

const LENS: [(usize, usize); 5] = [(70, 3), (33, 7), (5, 5), (64, 2), (18, 6)];
/// Three that start in two pages each and end in three.
const GROWING: [(usize, usize); 3] = [(31, 6), (30, 6), (29, 6)];

fn schedules_agree(device: &Device) {
    for config in shapes(device) {
        let requests = requests(&config, &LENS);
        let mut engine = seeded(&config, device, OPTIONS);
        let want: Vec<Vec<u32>> =
            requests.iter().map(|request| alone(&mut engine, request).unwrap()).collect();
        for (name, policy) in policies() {
            assert_tokens(&serve(&mut engine, policy, &requests), &want, name);
        }
        let single = EngineOptions { uses_graphs: false, ..OPTIONS };
        let mut single = seeded(&config, device, single);
        let (_, policy) = policies()[1];
        assert_tokens(&serve(&mut single, policy, &requests), &want, "kernel by kernel");

        // Evicted to the host's memory, or dropped and computed again.
        let growing = self::requests(&config, &GROWING);
        let want: Vec<Vec<u32>> =
            growing.iter().map(|request| alone(&mut engine, request).unwrap()).collect();
        for (host_pages, shares_prefixes) in [(8, true), (1, false)] {
            let few = EngineOptions { device_pages: 5, host_pages, ..OPTIONS };
            let mut engine = seeded(&config, device, few);
            let policy = Policy { shares_prefixes, ..Policy::continuous(4, 40) };
            let served = serve(&mut engine, policy, &growing);
            let what = format!("preempted, prefixes shared: {shares_prefixes}");
            assert_tokens(&served, &want, &what);
            assert!(num_preemptions(&served) > 0, "{what}: nobody was");
        }
    }
}

#[test]
fn static_continuous_and_preempted_runs_agree() {
    schedules_agree(&Device::cpu());
}

#[test]
#[ignore = "needs 1 GPU"]
fn static_continuous_and_preempted_runs_agree_on_a_gpu() {
    schedules_agree(&Device::cuda(0).unwrap());
}

/// Logits of a sequence's last token, computed after `num_cached` that are there, beside others.
fn logits(
    engine: &mut DeviceEngine,
    tokens: &[u32],
    num_cached: usize,
    others: &[Vec<u32>],
) -> Vec<bf16> {
    let mut first_slot = 0;
    let mut sequence = |request: u64, tokens: &[u32], num_cached_tokens: usize| {
        let num_pages = tokens.len().div_ceil(PAGE_SIZE) as u32;
        let slots = first_slot..first_slot + num_pages;
        first_slot += num_pages;
        StepSequence {
            request: RequestId(request),
            tokens: tokens[num_cached_tokens..].to_vec(),
            num_cached_tokens,
            pages: slots.map(|slot| Location { rank: 0, slot }).collect(),
            sampling: Some(Sampling::GREEDY),
        }
    };
    let mut sequences = vec![sequence(0, tokens, num_cached)];
    for (other, tokens) in (1..).zip(others) {
        sequences.push(sequence(other, tokens, 0));
    }
    engine.step(&Step { sequences }).unwrap();
    let row_len = engine.model().config().vocab_size as usize;
    engine.logits()[..row_len].to_vec()
}

fn logits_do_not_depend_on_the_batch(device: &Device) {
    for config in shapes(device) {
        let mut engine = seeded(&config, device, OPTIONS);
        engine.keep_logits();
        let prompts = |lens: &[usize]| -> Vec<Vec<u32>> {
            let lens: Vec<_> = lens.iter().map(|&len| (len, 1)).collect();
            requests(&config, &lens).into_iter().map(|request| request.prompt).collect()
        };
        // With the others beside it, a step of the longest is full.
        let lens: &[usize] = if device.is_cuda() { &[1, 16, 43, 90, 97] } else { &[16, 43] };
        for tokens in prompts(lens) {
            let want = logits(&mut engine, &tokens, 0, &[]);
            let beside = logits(&mut engine, &tokens, 0, &prompts(&[1, 30]));
            assert_eq!(beside, want, "{} tokens beside others", tokens.len());
            // Its last tokens in steps of their own, which for one token is a decode step.
            for num_last in [1, 5, 17].into_iter().filter(|&last| last < tokens.len()) {
                let num_first = tokens.len() - num_last;
                logits(&mut engine, &tokens[..num_first], 0, &[]);
                for others in [prompts(&[]), prompts(&[1, 1, 1]), prompts(&[2, 11])] {
                    let got = logits(&mut engine, &tokens, num_first, &others);
                    let others = others.len();
                    assert_eq!(got, want, "{num_last} after {num_first}, beside {others}");
                }
            }
        }
    }
}

#[test]
fn logits_are_the_same_to_the_last_bit_in_every_batch() {
    logits_do_not_depend_on_the_batch(&Device::cpu());
}

#[test]
#[ignore = "needs 1 GPU"]
fn logits_are_the_same_to_the_last_bit_in_every_batch_on_a_gpu() {
    logits_do_not_depend_on_the_batch(&Device::cuda(0).unwrap());
}

#[test]
fn what_cannot_be_served_ends_alone() {
    let device = Device::cpu();
    let config = NamedShape::Tiny.config();
    let mut all = requests(&config, &LENS[..3]);
    let few = EngineOptions { device_pages: 8, host_pages: 1, ..OPTIONS };
    let mut engine = seeded(&config, &device, few);
    let want: Vec<Vec<u32>> =
        all.iter().map(|request| alone(&mut engine, request).unwrap()).collect();
    // Longer than the context, larger than the pool, and with a token that is none.
    all.push(Request::new(3, vec![1; 200], 60));
    all.push(Request::new(4, vec![1; 120], 10));
    all.push(Request::new(5, vec![1, 2, config.vocab_size], 4));
    let served = serve(&mut engine, Policy::continuous(4, 64), &all);
    assert_tokens(&served, &want, "beside those that cannot be served");
    let ending = |id: usize| &served.requests[id].0.ending;
    let said = [3, 4, 5].map(|id| match ending(id) {
        Ending::Refused(reason) => format!("refused: {reason}"),
        Ending::Failed(reason) => format!("failed: {reason}"),
        ending => panic!("request {id}: {ending:?}"),
    });
    assert_eq!(
        said,
        [
            "refused: context: 200 prompt tokens and 60 new ones need 259, the model has 256",
            "refused: KV: 129 tokens need 9 pages, the pool has 8 in all",
            "failed: request 5: tokens: needs tokens below 256, got 256",
        ]
    );
}

#[test]
fn sampled_tokens_follow_from_the_seed_in_every_batch() {
    let config = NamedShape::Tiny.config();
    let mut engine = seeded(&config, &Device::cpu(), OPTIONS);
    let mut all = requests(&config, &LENS[1..4]);
    for request in &mut all {
        request.sampling = Sampling { temperature: 1.5, top_k: 20, top_p: 0.9, seed: request.id.0 };
    }
    let want: Vec<Vec<u32>> =
        all.iter().map(|request| alone(&mut engine, request).unwrap()).collect();
    for (name, policy) in policies() {
        assert_tokens(&serve(&mut engine, policy, &all), &want, name);
    }
}

const BY_LAYER: Roles = Roles::Disaggregated(HandOver::ByLayer);

fn options(roles: Roles) -> ClusterOptions {
    ClusterOptions {
        roles,
        policy: Policy::continuous(4, 64),
        prefill_policy: Policy::continuous(4, 24),
        network: None,
        stop: None,
    }
}

/// Serves on ranks, of which the last has so many pages. Whoever is left at the end holds nothing.
fn serve_on_ranks(
    world: &World,
    config: &ModelConfig,
    options: &ClusterOptions,
    pages_of_last: usize,
    requests: &[Request],
) -> ClusterServed {
    let make_engine = |rank: &Rank, _: &Clock| -> Result<Box<dyn Engine>, String> {
        let is_last = rank.index() + 1 == rank.size();
        let device_pages = if is_last { pages_of_last } else { OPTIONS.device_pages };
        let options = EngineOptions { device_pages, ..OPTIONS };
        Ok(Box::new(seeded(config, rank.device(), options)))
    };
    let cluster = serve_on(world, options, &make_engine, requests.to_vec()).unwrap();
    for report in cluster.ranks.iter().flatten() {
        assert_eq!(report.num_held, 0);
    }
    assert_eq!(cluster.served.requests.len(), requests.len());
    cluster
}

fn ranks_agree(world: &World) {
    let device = &world.devices()[0];
    for config in shapes(device) {
        let requests = requests(&config, &LENS);
        let mut engine = seeded(&config, device, OPTIONS);
        let mut tokens_alone = |requests: &[Request]| -> Vec<Vec<u32>> {
            requests.iter().map(|request| alone(&mut engine, request).unwrap()).collect()
        };
        let want = tokens_alone(&requests);
        let network = Some(SimulatedNetwork { gb_s: 1.0, latency_us: 100.0 });
        for (roles, network) in [
            (Roles::Monolithic, None),
            (Roles::Disaggregated(HandOver::ThroughHost), None),
            (Roles::Disaggregated(HandOver::AfterPrefill), None),
            (BY_LAYER, None),
            (BY_LAYER, network),
        ] {
            let options = ClusterOptions { network, ..options(roles) };
            let cluster = serve_on_ranks(world, &config, &options, 48, &requests[..3]);
            assert_tokens(&cluster.served, &want[..3], &format!("{roles:?}"));
            assert!(cluster.ranks.iter().all(Result::is_ok), "{:?}", cluster.ranks);
        }

        // A decode rank with room for hardly two at their ends: prompts wait for room, and who
        // decodes is preempted.
        let growing = self::requests(&config, &GROWING);
        let cluster = serve_on_ranks(world, &config, &options(BY_LAYER), 5, &growing);
        assert_tokens(&cluster.served, &tokens_alone(&growing), "a full decode rank");

        // One that stops: who was not served by then hears why, and its memory is free again.
        let free_before = free_bytes(world);
        let stop = Some(StopRank { rank: 1, num_steps: 2 });
        let options = ClusterOptions { stop, ..options(BY_LAYER) };
        let cluster = serve_on_ranks(world, &config, &options, 48, &requests);
        let stopped = cluster.ranks[1].as_ref().unwrap_err();
        assert!(stopped.contains("it was to stop after 2 steps"), "{stopped}");
        assert!(cluster.ranks[0].is_ok());
        let mut num_failed = 0;
        for ((answer, _), want) in cluster.served.requests.iter().zip(&want) {
            match &answer.ending {
                Ending::Failed(reason) => {
                    let names_it = reason.starts_with("rank 1 stopped (");
                    assert!(names_it || reason.starts_with("no rank"), "{reason}");
                    num_failed += 1;
                }
                ending => assert!(ending.is_served() && answer.tokens == *want, "{answer:?}"),
            }
        }
        assert!(num_failed > 0);
        for (before, after) in free_before.into_iter().zip(free_bytes(world)) {
            assert!(
                after + SMALL_BYTES >= before,
                "{after} bytes are free, and {before} were before"
            );
        }
    }
}

/// What the driver may keep for itself; an engine has much more.
const SMALL_BYTES: usize = 64 << 20;

/// Bytes that nobody has, of each GPU.
fn free_bytes(world: &World) -> Vec<usize> {
    let memory = |device: &Device| device.properties().unwrap().memory;
    world.devices().iter().filter_map(memory).map(|memory| memory.free).collect()
}

#[test]
fn ranks_agree_whatever_they_do_for_each_other() {
    ranks_agree(&World::cpu(2));
}

#[test]
#[ignore = "needs 2 GPUs"]
fn ranks_agree_whatever_they_do_for_each_other_on_gpus() {
    ranks_agree(&World::cuda(2).unwrap());
}
