//! `generate`: tokens of a model, as they come.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{ArgGroup, Args, ValueEnum};
use farpage::device::DeviceChoice;
use farpage::harness::Machine;
use farpage::kv::Location;
use farpage::model::config::NamedShape;
use farpage::model::engine::{Engine, RequestId, Sampling, Step, StepSequence};
use farpage::model::{DeviceEngine, EngineOptions, Tokenizer};

use super::Outcome;
use super::model_source::{self, ModelSource};
use super::numbers::whole;
use super::sampling::SamplingArguments;

/// Tokens of the longest context of any model.
const MOST_TOKENS: u64 = 1 << 31;
/// Tokens of a page.
const PAGE_SIZE: u32 = 16;
/// Tokens of a prompt that one step takes.
const CHUNK_TOKENS: usize = 2048;
/// The one request.
const REQUEST: RequestId = RequestId(0);

/// A memory that K and V may lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KvTier {
    /// The device's own.
    Local,
    /// Another device's.
    Peer,
    /// The host's, pinned.
    Host,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["model", "shape"]))]
pub struct GenerateArguments {
    /// A folder with config.json, safetensors and tokenizer.json: Llama, Qwen2, Qwen3, Mixtral,
    /// Qwen2-MoE or Qwen3-MoE.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Without a folder: weights from a seed, in this shape; tokens are then bytes, and mean nothing.
    #[arg(long, value_name = "SHAPE", value_parser = model_source::shape)]
    shape: Option<NamedShape>,

    /// What the model goes on from.
    #[arg(long, value_name = "TEXT")]
    prompt: String,

    /// Most tokens to make.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = whole::<u32>(1, MOST_TOKENS))]
    max_tokens: u32,

    #[command(flatten)]
    sampling: SamplingArguments,

    /// Of weights without a folder, and of sampling.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Where K and V lie; `peer` takes two devices.
    #[arg(long, value_name = "TIER", value_enum, default_value_t = KvTier::Local)]
    kv_tier: KvTier,

    /// How many of the pages lie there, in percent, the first ones; the others are local.
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = whole::<u32>(0, 100), requires = "kv_tier")]
    kv_far: u32,

    /// Issues decode steps kernel by kernel, instead of replaying them as one graph.
    #[arg(long)]
    no_graph: bool,
}

pub fn run(choice: DeviceChoice, arguments: &GenerateArguments) -> Result<Outcome> {
    let sampling = arguments.sampling.seeded(arguments.seed)?;
    let source = ModelSource::open(arguments.model.as_deref(), arguments.shape, arguments.seed)?;
    let config = &source.config;
    let tokenizer = match &source.folder {
        Some(folder) => Tokenizer::from_folder(folder)?,
        None => Tokenizer::bytes(config.vocab_size),
    };
    let prompt = tokenizer.encode(&arguments.prompt).map_err(|problem| anyhow!(problem))?;
    ensure!(!prompt.is_empty(), "`--prompt` must have a token at least");
    let num_max_tokens = prompt.len() + arguments.max_tokens as usize;
    if num_max_tokens > config.num_max_positions as usize {
        bail!(
            "prompt and `--max-tokens` together must be at most {} tokens, the model's context, got {num_max_tokens}",
            config.num_max_positions
        );
    }
    let machine = Machine::open(choice, None)?;
    let meaning = if source.folder.is_some() { "" } else { "; its tokens mean nothing" };
    println!("{}\nmodel: {}{meaning}", machine.describe(), source.name);
    let num_devices = if arguments.kv_tier == KvTier::Peer { 2 } else { 1 };
    machine.check(num_devices)?;
    let devices = machine.devices(num_devices)?;
    let stream = Arc::new(devices[0].new_stream()?);
    let model = source.load(&stream, num_max_tokens as u32)?;
    let num_pages = num_max_tokens.div_ceil(PAGE_SIZE as usize);
    let pages = PagePlaces::new(arguments, num_pages);
    let num_far = pages.num_far as usize;
    let options = EngineOptions {
        num_max_sequences: 1,
        num_max_tokens_per_step: CHUNK_TOKENS,
        page_size: PAGE_SIZE,
        device_pages: num_pages - num_far,
        host_pages: if arguments.kv_tier == KvTier::Host { num_far } else { 0 },
        uses_graphs: !arguments.no_graph,
    };
    let peers: Vec<_> = devices[1..].iter().map(|peer| (peer.clone(), num_far)).collect();
    let engine = DeviceEngine::with_peers(stream, model, options, &peers)?;
    let mut generation = Generation { engine, sampling, pages, tokens: Vec::new() };
    generation.generate(&prompt, arguments.max_tokens, &config.end_tokens, &tokenizer)?;
    Ok(Outcome::Passed)
}

/// Where the pages of the sequence lie.
struct PagePlaces {
    /// The first ones are far.
    num_far: u32,
}

impl PagePlaces {
    fn new(arguments: &GenerateArguments, num_pages: usize) -> Self {
        let num_far = match arguments.kv_tier {
            KvTier::Local => 0,
            KvTier::Peer | KvTier::Host => num_pages * arguments.kv_far as usize / 100,
        };
        Self { num_far: num_far as u32 }
    }

    /// That of a page; there is one location beside the device's own.
    fn of_page(&self, page: u32) -> Location {
        match page.checked_sub(self.num_far) {
            Some(slot) => Location { rank: 0, slot },
            None => Location { rank: 1, slot: page },
        }
    }
}

/// One sequence under way.
struct Generation {
    engine: DeviceEngine,
    sampling: Sampling,
    pages: PagePlaces,
    /// Those whose K and V are in pages.
    tokens: Vec<u32>,
}

impl Generation {
    fn generate(
        &mut self,
        prompt: &[u32],
        max_tokens: u32,
        end_tokens: &[u32],
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        let mut stdout = io::stdout();
        let mut text = tokenizer.text_stream();
        let started = Instant::now();
        let mut token = self.prefill(prompt)?;
        let first_after = started.elapsed();
        let mut steps = Vec::new();
        loop {
            if end_tokens.contains(&token) {
                break;
            }
            write!(stdout, "{}", text.push(token).map_err(|problem| anyhow!(problem))?)?;
            stdout.flush()?;
            if steps.len() + 1 == max_tokens as usize {
                break;
            }
            let started = Instant::now();
            token = self.step(&[token], true)?.context("a decode step samples")?;
            steps.push(started.elapsed());
        }
        writeln!(stdout)?;
        report(prompt.len(), first_after, steps);
        Ok(())
    }

    /// The prompt in chunks, and the first token after it.
    fn prefill(&mut self, prompt: &[u32]) -> Result<u32> {
        let mut first = None;
        for chunk in prompt.chunks(CHUNK_TOKENS) {
            let is_last = self.tokens.len() + chunk.len() == prompt.len();
            first = self.step(chunk, is_last)?;
        }
        first.context("the last chunk of a prompt samples")
    }

    fn step(&mut self, tokens: &[u32], samples: bool) -> Result<Option<u32>> {
        let num_cached_tokens = self.tokens.len();
        self.tokens.extend(tokens);
        let num_pages = self.tokens.len().div_ceil(PAGE_SIZE as usize) as u32;
        let sequence = StepSequence {
            request: REQUEST,
            tokens: tokens.to_vec(),
            num_cached_tokens,
            pages: (0..num_pages).map(|page| self.pages.of_page(page)).collect(),
            sampling: samples.then_some(self.sampling),
        };
        let answers = self.engine.step(&Step { sequences: vec![sequence] })?;
        Ok(answers.first().map(|answer| answer.token))
    }
}

/// The first decode step, which loads kernels and captures the graph, is told apart from the others.
fn report(num_prompt: usize, first_after: Duration, mut steps: Vec<Duration>) {
    let ms = |duration: Duration| 1e3 * duration.as_secs_f64();
    print!("{num_prompt} prompt tokens in {:.1} ms", ms(first_after));
    if !steps.is_empty() {
        print!("; {} tokens after the first, {:.1} ms for one", steps.len(), ms(steps.remove(0)));
    }
    if !steps.is_empty() {
        steps.sort_unstable();
        print!(", {:.3} ms for the others in the median", ms(steps[steps.len() / 2]));
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pages_are_far_and_the_others_local() {
        let pages = PagePlaces { num_far: 2 };
        let places = [0, 1, 2, 3].map(|page| pages.of_page(page));
        let place = |(rank, slot)| Location { rank, slot };
        assert_eq!(places, [(1, 0), (1, 1), (0, 0), (0, 1)].map(place));
    }
}
