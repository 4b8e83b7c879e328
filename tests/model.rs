//! Models of every family against what transformers computes from the same checkpoints, and the ways
//! of running one against each other.
//!
//! `dev/checkpoints/make_fixtures.py` makes the checkpoints and the references: logits in f32 from
//! the same bf16 weights.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use farpage::comm::World;
use farpage::device::Device;
use farpage::kv::Location;
use farpage::model::config::NamedShape;
use farpage::model::engine::{
    Engine, EngineError, PageCopy, RequestId, Sampling, Step, StepSequence,
};
use farpage::model::reference::Reference;
use farpage::model::weights::{Checkpoint, Seeded};
use farpage::model::{DeviceEngine, EngineOptions, ModelConfig, Transformer};
use safetensors::SafeTensors;

const FAMILIES: [&str; 6] = ["llama", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe"];
const PAGE_SIZE: usize = 16;
/// Most that a logit is off, over the standard deviation of its row.
const TOLERANCE: f64 = 0.05;

const OPTIONS: EngineOptions = EngineOptions {
    num_max_sequences: 4,
    num_max_tokens_per_step: 64,
    page_size: PAGE_SIZE as u32,
    device_pages: 12,
    host_pages: 6,
    uses_graphs: true,
};

fn fixture(family: &str) -> PathBuf {
    Path::new("tests/checkpoints").join(family)
}

fn engine(family: &str, device: &Device, options: EngineOptions) -> DeviceEngine {
    engine_of(family, std::slice::from_ref(device), options)
}

/// One that runs on the first device, and has as many pages in the memory of each of the others.
fn engine_of(family: &str, devices: &[Device], options: EngineOptions) -> DeviceEngine {
    let stream = Arc::new(devices[0].new_stream().unwrap());
    let config = ModelConfig::from_folder(&fixture(family)).unwrap();
    let source = Checkpoint::open(&fixture(family)).unwrap();
    let model = Transformer::load(&stream, config, &source, 128, &mut |_| {}).unwrap();
    let lend = |device: &Device| (device.clone(), options.device_pages);
    let peers: Vec<_> = devices[1..].iter().map(lend).collect();
    let mut engine = DeviceEngine::with_peers(stream, model, options, &peers).unwrap();
    engine.keep_logits();
    engine
}

/// What transformers says of a prompt.
struct Expected {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    /// For each of the tokens.
    logits: Vec<Vec<f32>>,
}

fn references(family: &str) -> Vec<Expected> {
    let bytes = fs::read(fixture(family).join("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let tokens = |name: &str| words(name).into_iter().map(u32::from_le_bytes).collect::<Vec<_>>();
    let reference = |i: usize| {
        let (prompt, tokens) = (tokens(&format!("prompt.{i}")), tokens(&format!("tokens.{i}")));
        let logits: Vec<f32> =
            words(&format!("logits.{i}")).into_iter().map(f32::from_le_bytes).collect();
        let num_rows = prompt.len() + tokens.len() - 1;
        let rows = logits.chunks(logits.len() / num_rows).map(<[f32]>::to_vec);
        let logits = rows.skip(prompt.len() - 1).collect();
        Expected { prompt, tokens, logits }
    };
    (0..2).map(reference).collect()
}

/// A sequence and its pages.
struct Sequence {
    request: RequestId,
    tokens: Vec<u32>,
    num_cached: usize,
    pages: Vec<Location>,
    sampling: Sampling,
}

impl Sequence {
    /// A prompt that may use the pages of a rank from `first_slot` on, four of them.
    fn new(request: u64, prompt: &[u32], rank: u32, first_slot: u32) -> Self {
        Self {
            request: RequestId(request),
            tokens: prompt.to_vec(),
            num_cached: 0,
            pages: (first_slot..first_slot + 4).map(|slot| Location { rank, slot }).collect(),
            sampling: Sampling::GREEDY,
        }
    }

    /// Takes part with its next `num_new` tokens, or all that are left.
    fn next(&mut self, num_new: usize) -> StepSequence {
        let end = self.tokens.len().min(self.num_cached + num_new);
        let tokens = self.tokens[self.num_cached..end].to_vec();
        let num_cached_tokens = std::mem::replace(&mut self.num_cached, end);
        StepSequence {
            request: self.request,
            tokens,
            num_cached_tokens,
            pages: self.pages[..end.div_ceil(PAGE_SIZE)].to_vec(),
            sampling: (end == self.tokens.len()).then_some(self.sampling),
        }
    }
}

/// Tokens that a step gives to each of these sequences, which take them.
fn step(engine: &mut DeviceEngine, sequences: &mut [Sequence], num_new: usize) -> Vec<u32> {
    let step = Step { sequences: sequences.iter_mut().map(|s| s.next(num_new)).collect() };
    let answers = engine.step(&step).unwrap();
    for answer in &answers {
        let taker = sequences.iter_mut().find(|sequence| sequence.request == answer.request);
        taker.unwrap().tokens.push(answer.token);
    }
    answers.into_iter().map(|answer| answer.token).collect()
}

/// Greedy tokens of one prompt, alone.
fn generate(engine: &mut DeviceEngine, prompt: &[u32], chunk: usize, num_new: usize) -> Vec<u32> {
    let mut sequence = [Sequence::new(1, prompt, 0, 0)];
    while sequence[0].tokens.len() < prompt.len() + num_new {
        step(engine, &mut sequence, chunk);
    }
    sequence[0].tokens[prompt.len()..].to_vec()
}

/// Both prompts in one batch, with pages in every memory: the first device's, the others', the host's.
fn equals_transformers(devices: &[Device]) {
    let mut worst: f64 = 0.0;
    let num_locations = devices.len() as u32 + 1;
    for family in FAMILIES {
        let references = references(family);
        let mut engine = engine_of(family, devices, OPTIONS);
        let mut sequences: Vec<Sequence> =
            (0..).zip(&references).map(|(i, r)| Sequence::new(i, &r.prompt, i as u32, 1)).collect();
        for sequence in &mut sequences {
            // The first prompt takes two pages in the end. Both have the same slots, of other ranks.
            for (i, page) in (0..).zip(&mut sequence.pages) {
                page.rank = (page.rank + num_locations - 2 + i) % num_locations;
            }
        }
        for at in 0..references[0].tokens.len() {
            let tokens = step(&mut engine, &mut sequences, usize::MAX / 2);
            let vocab_size = engine.model().config().vocab_size as usize;
            for (i, reference) in references.iter().enumerate() {
                let got = &engine.logits()[i * vocab_size..][..vocab_size];
                let want = &reference.logits[at];
                let mean = want.iter().map(|&x| f64::from(x)).sum::<f64>() / vocab_size as f64;
                let variance = want.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
                let spread = (variance / vocab_size as f64).sqrt();
                for (got, want) in got.iter().zip(want) {
                    let off = (f64::from(*got) - f64::from(*want)).abs() / spread;
                    assert!(
                        off <= TOLERANCE,
                        "{family}, prompt {i}, token {at}: {off} spreads off"
                    );
                    worst = worst.max(off);
                }
                assert_eq!(tokens[i], reference.tokens[at], "{family}, prompt {i}, token {at}");
            }
        }
    }
    println!("largest difference: {worst:.4} standard deviations of the logits");
}

#[test]
fn logits_and_tokens_are_those_of_transformers() {
    equals_transformers(&[Device::cpu()]);
}

#[test]
fn logits_and_tokens_are_the_same_with_pages_of_a_peer() {
    equals_transformers(World::cpu(2).devices());
}

#[test]
#[ignore = "needs 1 GPU"]
fn logits_and_tokens_on_a_gpu_are_those_of_transformers() {
    equals_transformers(&[Device::cuda(0).unwrap()]);
}

#[test]
#[ignore = "needs 2 GPUs"]
fn logits_and_tokens_on_a_gpu_are_the_same_with_pages_of_a_peer() {
    equals_transformers(World::cuda(2).unwrap().devices());
}

#[test]
fn the_oracle_is_what_transformers_computes() {
    for family in FAMILIES {
        let config = ModelConfig::from_folder(&fixture(family)).unwrap();
        let oracle = Reference::new(&config, &Checkpoint::open(&fixture(family)).unwrap()).unwrap();
        for expected in references(family) {
            let Expected { prompt, tokens, logits } = expected;
            let all = [&prompt[..], &tokens[..tokens.len() - 1]].concat();
            let got = oracle.logits(&all);
            for (got, want) in got[prompt.len() - 1..].iter().zip(logits) {
                let off = got.iter().zip(want).map(|(got, want)| (got - f64::from(want)).abs());
                let worst = off.fold(0.0, f64::max);
                assert!(worst < 1e-4, "{family}: {worst}");
            }
        }
    }
}

fn ways_of_running_agree(device: &Device) {
    for family in ["llama", "qwen2_moe"] {
        let Expected { prompt, tokens, .. } = references(family).remove(0);
        for (uses_graphs, chunks) in [(true, &[1, 7, 64][..]), (false, &[64])] {
            let mut engine = engine(family, device, EngineOptions { uses_graphs, ..OPTIONS });
            for &chunk in chunks {
                let got = generate(&mut engine, &prompt, chunk, tokens.len());
                assert_eq!(got, tokens, "{family}, graphs {uses_graphs}, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn chunks_graphs_and_single_launches_agree() {
    ways_of_running_agree(&Device::cpu());
}

#[test]
#[ignore = "needs 1 GPU"]
fn chunks_graphs_and_single_launches_agree_on_a_gpu() {
    ways_of_running_agree(&Device::cuda(0).unwrap());
}

#[test]
fn pages_move_between_tiers_and_engines_in_the_middle_of_a_sequence() {
    let devices = World::cpu(2).devices().to_vec();
    let Expected { prompt, tokens, .. } = references("qwen3").remove(0);
    let mut first = engine_of("qwen3", &devices, OPTIONS);
    assert_eq!(first.pages().num_pages(), [12, 12, 6], "here, with the peer, with the host");
    let mut sequences = [Sequence::new(1, &prompt, 1, 0)];
    let mut handed_over = Vec::new();
    let all = sequences[0].next(usize::MAX / 2);
    let answers = first
        .step_by_layer(&Step { sequences: vec![all.clone()] }, &mut |layer, pages| {
            handed_over.push((layer, pages.export(layer, &all.pages)?));
            Ok(())
        })
        .unwrap();
    sequences[0].tokens.push(answers[0].token);
    assert_eq!(handed_over.len(), first.limits().num_layers);

    // From the memory of the peer to the host's, to this device's, and on from there; slots that were
    // left hold other tokens' pages.
    let other = [5; 40];
    for (num_given, (rank, first_slot)) in (2..).zip([(2, 2), (0, 8)]) {
        let (before, slots) = (sequences[0].pages.clone(), first_slot..first_slot + 4);
        let moved: Vec<Location> = slots.map(|slot| Location { rank, slot }).collect();
        let copy = |(&source, &destination)| PageCopy { source, destination };
        let copies: Vec<PageCopy> = before.iter().zip(&moved).map(copy).collect();
        let pages = first.pages();
        let was: Vec<Vec<u8>> = (0..2).map(|l| pages.export(l, &before).unwrap()).collect();
        pages.copy(&copies).unwrap();
        for (layer, was) in was.iter().enumerate() {
            assert!(pages.export(layer, &moved).unwrap() == *was, "layer {layer} to rank {rank}");
        }
        let mut intruder = [Sequence { pages: before, ..Sequence::new(2, &other, 0, 0) }];
        step(&mut first, &mut intruder, other.len());
        sequences[0].pages = moved;
        step(&mut first, &mut sequences, 1);
        assert_eq!(sequences[0].tokens[prompt.len()..], tokens[..num_given], "from rank {rank}");
    }

    // To another engine, after the prompt.
    let mut second = engine("qwen3", &devices[0], OPTIONS);
    let mut moved = [Sequence::new(1, &prompt, 0, 5)];
    moved[0].tokens.push(tokens[0]);
    moved[0].num_cached = prompt.len();
    for (layer, bytes) in handed_over {
        let pages = moved[0].pages[..all.pages.len()].to_vec();
        assert!(second.pages().import(layer, &pages, &bytes[1..]).is_err());
        second.pages().import(layer, &pages, &bytes).unwrap();
    }
    for _ in 1..tokens.len() {
        step(&mut second, &mut moved, 1);
    }
    assert_eq!(moved[0].tokens[prompt.len()..], tokens);
}

#[test]
fn a_requests_fault_names_it_and_changes_nothing() {
    let mut engine = engine("llama", &Device::cpu(), OPTIONS);
    let good = || Sequence::new(1, &[1, 2, 3], 0, 0).next(3);
    let page = |rank, slot| Location { rank, slot };
    let bad = [
        StepSequence { tokens: vec![], pages: vec![], ..good() },
        StepSequence { tokens: vec![256], ..good() },
        StepSequence { pages: vec![page(0, 0), page(0, 1)], ..good() },
        StepSequence { pages: vec![page(0, 12)], ..good() },
        StepSequence { pages: vec![page(2, 0)], ..good() },
        StepSequence { num_cached_tokens: 126, ..good() },
        StepSequence {
            sampling: Some(Sampling { temperature: f32::NAN, ..Sampling::GREEDY }),
            ..good()
        },
        StepSequence { sampling: Some(Sampling { top_p: 0.0, ..Sampling::GREEDY }), ..good() },
        // The page of the good one.
        good(),
    ];
    let mut texts = Vec::new();
    for bad in bad {
        let bad = StepSequence { request: RequestId(7), ..bad };
        let error = engine.step(&Step { sequences: vec![good(), bad] }).unwrap_err();
        assert_eq!(error.request(), Some(RequestId(7)), "{error}");
        texts.push(error.to_string());
    }
    let twice =
        Step { sequences: vec![good(), StepSequence { pages: vec![page(0, 1)], ..good() }] };
    texts.push(engine.step(&twice).unwrap_err().to_string());
    let many = Step { sequences: (0..5).map(|_| good()).collect() };
    let error = engine.step(&many).unwrap_err();
    assert!(matches!(error, EngineError::Step { .. }));
    texts.push(error.to_string());
    insta::assert_snapshot!(texts.join("\n"));
    assert_eq!(engine.step(&Step { sequences: vec![good()] }).unwrap().len(), 1);
}

#[test]
fn sampling_follows_from_the_seed_and_limits() {
    let mut engine = engine("llama", &Device::cpu(), OPTIONS);
    let Expected { prompt, tokens, .. } = references("llama").remove(1);
    let mut draw = |sampling: Sampling| {
        let mut sequence = [Sequence { sampling, ..Sequence::new(1, &prompt, 0, 0) }];
        for _ in 0..tokens.len() {
            step(&mut engine, &mut sequence, 64);
        }
        sequence[0].tokens[prompt.len()..].to_vec()
    };
    let hot = Sampling { temperature: 3.0, seed: 5, ..Sampling::GREEDY };
    assert_eq!(draw(hot), draw(hot));
    assert_ne!(draw(hot), draw(Sampling { seed: 6, ..hot }));
    assert_eq!(draw(Sampling { top_k: 1, ..hot }), tokens);
    assert_eq!(draw(Sampling { top_p: 1e-6, ..hot }), tokens);
}

#[test]
fn seeded_weights_keep_activations_near_one() {
    let stream = Arc::new(Device::cpu().new_stream().unwrap());
    let config = NamedShape::Tiny.config();
    let source = Seeded::new(1, config.num_layers());
    let model = Transformer::load(&stream, config, &source, 128, &mut |_| {}).unwrap();
    let mut engine = DeviceEngine::new(stream, model, OPTIONS).unwrap();
    engine.keep_logits();
    let prompt: Vec<u32> = (0..40).map(|i| i * 5 % 256).collect();
    let tokens = generate(&mut engine, &prompt, 64, 6);
    let logits: Vec<f64> = engine.logits().iter().map(|&x| x.into()).collect();
    let deviation = (logits.iter().map(|x| x * x).sum::<f64>() / logits.len() as f64).sqrt();
    assert!((1.0..9.0).contains(&deviation), "{deviation}");
    assert_eq!(tokens, generate(&mut engine, &prompt, 9, 6));
}

fn host(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_host"));
    command.args(["generate", "--device", "cpu"]).args(arguments).output().unwrap()
}

#[test]
fn the_command_prints_tokens_of_a_folder_and_of_a_seed() {
    let folder = fixture("qwen2_moe").display().to_string();
    let printed = |arguments: &[&str]| {
        let output = host(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{error}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("device: "), "{text}");
        assert!(text.contains("prompt tokens in"), "{text}");
        // Before the tokens device and model, after them the times.
        text.lines().skip(2).take(text.lines().count() - 3).collect::<Vec<_>>().join("\n")
    };
    let of_folder = ["--model", &folder, "--prompt", "Far pages", "--max-tokens", "6"];
    assert_eq!(printed(&of_folder), printed(&[&of_folder[..], &["--no-graph"]].concat()));
    for tier in [&["--kv-tier", "host"][..], &["--kv-tier", "peer", "--kv-far", "50"]] {
        assert_eq!(printed(&of_folder), printed(&[&of_folder[..], tier].concat()));
    }
    let of_seed = ["--shape", "tiny", "--prompt", "Far pages", "--max-tokens", "6"];
    assert_eq!(printed(&of_seed).split_whitespace().count(), 6);
    let hot = [&of_seed[..], &["--temperature", "2", "--top-k", "9", "--seed", "3"]].concat();
    assert_eq!(printed(&hot), printed(&hot));
}

#[test]
fn the_command_refuses_in_words() {
    let folder = fixture("llama").display().to_string();
    let broken = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let bytes = fs::read(fixture("llama").join(file)).unwrap();
        let len = bytes.len() - if file == "model.safetensors" { 100 } else { 0 };
        fs::write(broken.path().join(file), &bytes[..len]).unwrap();
    }
    let broken = broken.path().display().to_string();
    let refusals = [
        &["--prompt", "a"][..],
        &["--model", "nowhere", "--prompt", "a"],
        &["--shape", "gpt2", "--prompt", "a"],
        &["--shape", "tiny", "--model", &folder, "--prompt", "a"],
        &["--model", &folder, "--prompt", ""],
        &["--model", &folder, "--prompt", "a", "--max-tokens", "500"],
        &["--model", &folder, "--prompt", "a", "--temperature", "-1"],
        &["--model", &folder, "--prompt", "a", "--top-p", "1.5"],
        &["--model", &folder, "--prompt", "a", "--kv-far", "101"],
        &["--model", &broken, "--prompt", "a"],
    ];
    let said = refusals.map(|arguments| {
        let output = host(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        error.lines().next().unwrap_or_default().replace(&broken, "BROKEN")
    });
    insta::assert_snapshot!(said.join("\n"));
}
