//! `serve`: a load, one policy, and how long everybody waits.

use std::env;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use farpage::comm::{Rank, World};
use farpage::device::{Device, DeviceChoice, Stream};
use farpage::model::config::NamedShape;
use farpage::model::engine::{Engine, Sampling};
use farpage::model::{DeviceEngine, EngineOptions, Transformer};
use farpage::serve::disagg::{ClusterOptions, HandOver, Roles, SimulatedNetwork, serve_on};
use farpage::serve::load::{LogNormal, PoissonLoad, TraceLoad};
use farpage::serve::timeline::RequestMetrics;
use farpage::serve::{
    Clock, Ending, Order, Policy, Request, Reserve, SIMULATED, Served, Server, SimulatedEngine,
    SimulatedModel, Slo, Summary,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Outcome;
use super::model_source::{self, ModelSource};
use super::numbers::{above_0, whole};
use super::sampling::SamplingArguments;
use super::selection::MOST_RANKS;

#[derive(Debug, Args)]
pub struct ServeArguments {
    #[command(flatten)]
    engine: EngineArguments,

    /// A trace in the Mooncake format (JSON lines); without one, requests arrive independently.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Requests of a trace arrive this many times faster than it says.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = above_0, requires = "trace")]
    speed: f64,

    /// Lengths of a trace are divided by this.
    #[arg(long, value_name = "FACTOR", default_value_t = 1, value_parser = whole::<usize>(1, MOST_TOKENS), requires = "trace")]
    shrink: usize,

    /// Requests; of a trace, the first ones.
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = whole::<usize>(1, 1_000_000))]
    requests: usize,

    /// Requests a second, in the mean; without it all are there from the start.
    #[arg(long, value_name = "REQUESTS/S", value_parser = above_0, conflicts_with = "trace")]
    rate: Option<f64>,

    /// Prompts: median and most tokens, log-normal; 512x2048 by default, or what the model's context
    /// has room for.
    #[arg(long, value_name = "MEDIANxMOST", value_parser = lengths, conflicts_with = "trace")]
    prompts: Option<(usize, usize)>,

    /// Answers: the same; 128x512 by default.
    #[arg(long, value_name = "MEDIANxMOST", value_parser = lengths, conflicts_with = "trace")]
    answers: Option<(usize, usize)>,

    /// Tokens that all prompts begin with.
    #[arg(long, value_name = "TOKENS", default_value_t = 0, value_parser = whole::<usize>(0, MOST_TOKENS), conflicts_with = "trace")]
    shared: usize,

    /// What all requests follow from, and weights without a folder.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// When requests join and leave.
    #[arg(long, value_enum, default_value_t)]
    batching: BatchingArgument,

    /// Requests that run at the same time.
    #[arg(long, default_value_t = 32, value_parser = whole::<usize>(1, 1 << 16))]
    slots: usize,

    /// Tokens of a step, of prompts and decoding together.
    #[arg(long, value_name = "TOKENS", default_value_t = 160, value_parser = whole::<usize>(1, MOST_TOKENS))]
    step_tokens: usize,

    /// Whose prompt goes first.
    #[arg(long, value_enum, default_value_t)]
    order: OrderArgument,

    /// Reserves the longest context for each request, instead of pages as tokens come.
    #[arg(long)]
    whole_contexts: bool,

    /// What a prompt's token takes, about, for `--order deadline`, µs.
    #[arg(long, value_name = "US", default_value_t = 27.0, value_parser = above_0)]
    prompt_token_us: f64,

    /// Computes equal beginnings again for each request.
    #[arg(long)]
    no_sharing: bool,

    /// Answers that are the same to the last bit by every schedule; takes longer.
    #[arg(long)]
    batch_invariant: bool,

    /// Issues decode steps kernel by kernel, instead of replaying them as one graph.
    #[arg(long)]
    no_graph: bool,

    #[command(flatten)]
    sampling: SamplingArguments,

    /// Pages of 16 tokens in local memory.
    #[arg(long, default_value_t = 4096, value_parser = whole::<usize>(1, MOST_PAGES))]
    pages: usize,

    /// Pages in the host's memory, to which cached ones go when room is wanted; at least 1.
    #[arg(long, default_value_t = 512, value_parser = whole::<usize>(1, MOST_PAGES))]
    host_pages: usize,

    /// Most time to first token that users were promised, ms.
    #[arg(long, value_name = "MS", default_value_t = 2000.0, value_parser = above_0)]
    ttft_ms: f64,

    /// Most mean time of each token after it, ms.
    #[arg(long, value_name = "MS", default_value_t = 50.0, value_parser = above_0)]
    tpot_ms: f64,

    /// Serves on so many ranks, a GPU each, or on the CPU's cores; by default as many as
    /// AISP_DISAGG_WORLD_SIZE says, or one. Several ranks are always on the wall's clock, a simulated
    /// one on a virtual one.
    #[arg(long, value_name = "RANKS", value_parser = whole::<usize>(1, MOST_RANKS))]
    world_size: Option<usize>,

    /// What several ranks do for each other; `disaggregated` unless given.
    #[arg(long, value_enum)]
    roles: Option<RolesArgument>,

    /// Between ranks, bytes take this long: GB/s of each link, and µs until the first byte.
    #[arg(long, value_name = "GB/SxUS", value_parser = network)]
    simulate_network: Option<SimulatedNetwork>,

    /// Prints what is decided for each step of a single rank.
    #[arg(long, conflicts_with_all = ["json", "world_size"])]
    plans: bool,

    /// Prints everything as JSON, each request's numbers too.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum BatchingArgument {
    Static,
    #[default]
    Continuous,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum OrderArgument {
    Arrival,
    /// Who must start first to see the first token in time.
    #[default]
    Deadline,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum RolesArgument {
    /// Each serves its share of the requests.
    Monolithic,
    /// Half of them compute prompts for the other half, and push KV layer by layer.
    #[default]
    Disaggregated,
    /// The same, with KV handed over after prefill.
    InSeries,
    /// The same, through the host's memory.
    ThroughHost,
}

/// What computes.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct EngineArguments {
    /// A folder with config.json and safetensors: Llama, Qwen2, Qwen3, Mixtral, Qwen2-MoE or
    /// Qwen3-MoE.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Weights from the seed, in this shape.
    #[arg(long, value_name = "SHAPE", value_parser = model_source::shape)]
    shape: Option<NamedShape>,

    /// No model: tokens are hashes, and times follow from stated costs of about 8B dense on an H200.
    #[arg(long)]
    simulated: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct JsonReport<'a> {
    engine: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    simulated: Option<SimulatedModel>,
    policy: Policy,
    summary: &'a Summary,
    requests: Vec<RequestMetrics>,
}

/// Tokens of the longest prompt, and of other such lengths.
const MOST_TOKENS: u64 = 1 << 20;
/// Pages of a memory.
const MOST_PAGES: u64 = 1 << 20;
/// Tokens of all prompts together, which memory must hold before the first request is served.
const MOST_TOKENS_OF_A_LOAD: usize = 1 << 32;

/// Median and most tokens of prompts, unless given.
const PROMPTS: (usize, usize) = (512, 2048);
/// The same of answers.
const ANSWERS: (usize, usize) = (128, 512);

/// Two numbers with an x between them.
fn lengths(text: &str) -> Result<(usize, usize), &'static str> {
    let numbers = text.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let most_tokens = MOST_TOKENS as usize;
    let numbers =
        numbers.filter(|&(median, most)| 0 < median && median <= most && most <= most_tokens);
    numbers.ok_or("must be a median and a greatest number of tokens up to 1048576, as `512x2048`")
}

/// Two numbers with an x between them.
fn network(text: &str) -> Result<SimulatedNetwork, &'static str> {
    let numbers = text.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let numbers = numbers.filter(|(gb_s, latency_us): &(f64, f64)| {
        (1e-3..=1e6).contains(gb_s) && (0.0..=1e6).contains(latency_us)
    });
    let network = numbers.map(|(gb_s, latency_us)| SimulatedNetwork { gb_s, latency_us });
    network.ok_or("must be GB/s from 0.001 to 1000000 and µs up to 1000000, as `20x10`")
}

/// What says how many ranks there are, if no argument does.
const WORLD_SIZE: &str = "AISP_DISAGG_WORLD_SIZE";

/// Tokens of a page.
const PAGE_SIZE: u32 = 16;
/// Tokens of prompts that a step of a static batch takes, which has no other limit.
const STATIC_STEP_TOKENS: usize = 2048;

/// Tells whoever waits how far it is.
fn note(since: Instant, what: &str) {
    eprintln!("{:5.1} s: {what}", since.elapsed().as_secs_f64());
}

/// Shows how far a load is, on a terminal.
fn step_bar(num_requests: u64) -> Result<ProgressBar> {
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} requests begun, {msg}, {elapsed} gone")?;
    Ok(ProgressBar::new(num_requests).with_style(style))
}

/// What computes, before it is there.
enum EngineSource {
    Simulated(SimulatedModel),
    Model { source: ModelSource, num_max_positions: u32 },
}

impl EngineSource {
    fn open(arguments: &ServeArguments) -> Result<Self> {
        let EngineArguments { model, shape, simulated } = &arguments.engine;
        if *simulated {
            return Ok(Self::Simulated(SimulatedModel::dense_8b()));
        }
        let source = ModelSource::open(model.as_deref(), *shape, arguments.seed)?;
        let context = source.config.num_max_positions;
        let num_max_positions = context.min(arguments.num_max_context(context as usize));
        Ok(Self::Model { source, num_max_positions })
    }

    /// Tokens of the longest context.
    fn context(&self) -> usize {
        match self {
            Self::Simulated(model) => model.num_max_context,
            Self::Model { source, .. } => source.config.num_max_positions as usize,
        }
    }

    fn vocab_size(&self) -> u32 {
        match self {
            Self::Simulated(model) => model.vocab_size,
            Self::Model { source, .. } => source.config.vocab_size,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Simulated(_) => SIMULATED,
            Self::Model { source, .. } => &source.name,
        }
    }
}

pub fn run(choice: DeviceChoice, arguments: &ServeArguments) -> Result<Outcome> {
    let source = EngineSource::open(arguments)?;
    let num_ranks = arguments.num_ranks()?;
    let requests = arguments.load(source.vocab_size(), source.context())?;
    let policy = arguments.policy();
    let served = match num_ranks {
        1 => arguments.serve(choice, &source, policy, requests)?,
        ranks => arguments.serve_on(choice, ranks, &source, policy, requests)?,
    };
    let slo = Slo { ttft_us: arguments.ttft_ms * 1e3, tpot_us: arguments.tpot_ms * 1e3 };
    let summary = served.summary(slo);
    if arguments.json {
        let requests = served.requests.iter().map(|(answer, timeline)| timeline.metrics(answer));
        let simulated = match source {
            EngineSource::Simulated(model) => Some(model),
            EngineSource::Model { .. } => None,
        };
        let (requests, summary) = (requests.collect(), &summary);
        let report = JsonReport { engine: source.name(), simulated, policy, summary, requests };
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("\n{summary}");
        for (answer, _) in &served.requests {
            match &answer.ending {
                Ending::Length | Ending::StopToken => {}
                Ending::Refused(reason) => println!("request {} refused: {reason}", answer.id),
                Ending::Failed(reason) => println!("request {} failed: {reason}", answer.id),
            }
        }
    }
    Ok(if summary.num_failed == 0 { Outcome::Passed } else { Outcome::Violation })
}

impl ServeArguments {
    fn num_ranks(&self) -> Result<usize> {
        let num_ranks = match (self.world_size, env::var(WORLD_SIZE)) {
            (Some(size), _) => size,
            (None, Ok(size)) => whole(1, MOST_RANKS)(&size)
                .map_err(|needed| anyhow!("{WORLD_SIZE} {needed}, got `{size}`"))?,
            (None, Err(_)) => 1,
        };
        if num_ranks == 1 {
            for (argument, is_given) in [
                ("roles", self.roles.is_some()),
                ("simulate-network", self.simulate_network.is_some()),
            ] {
                ensure!(!is_given, "`--{argument}` needs several ranks, `--world-size` is 1");
            }
        }
        let halves = self.roles.unwrap_or_default() != RolesArgument::Monolithic;
        ensure!(
            num_ranks == 1 || num_ranks.is_multiple_of(2) || !halves,
            "`--world-size` must be even, as half of the ranks compute prompts for the others, got \
             {num_ranks}; `--roles monolithic` takes any number"
        );
        Ok(num_ranks)
    }

    /// Median and most tokens of prompts, and of answers: as given, or as usual where a context of
    /// this length has room for it.
    fn lengths(&self, context: usize) -> [(usize, usize); 2] {
        let within = |(median, most): (usize, usize), room: usize| {
            ((room / 2).clamp(1, median), room.clamp(1, most))
        };
        [
            self.prompts.unwrap_or(within(PROMPTS, context / 2)),
            self.answers.unwrap_or(within(ANSWERS, context / 4)),
        ]
    }

    /// Tokens of the longest request that can come; of a trace, what the model has.
    fn num_max_context(&self, context: usize) -> u32 {
        let [(_, prompt), (_, answer)] = self.lengths(context);
        match self.trace {
            Some(_) => u32::MAX,
            None => (self.shared + prompt + answer) as u32,
        }
    }

    fn say(&self, line: &str) {
        if !self.json {
            println!("{line}");
        }
    }

    fn device_engine(
        &self,
        device: &Device,
        load: impl FnOnce(&Arc<Stream>) -> Result<Transformer>,
    ) -> Result<DeviceEngine> {
        let stream = Arc::new(device.new_stream()?);
        let model = load(&stream)?;
        let options = EngineOptions {
            num_max_sequences: self.slots,
            num_max_tokens_per_step: self.step_tokens.max(STATIC_STEP_TOKENS),
            page_size: PAGE_SIZE,
            device_pages: self.pages,
            host_pages: self.host_pages,
            uses_graphs: !self.no_graph,
        };
        let engine = DeviceEngine::new(stream, model, options)?;
        Ok(if self.batch_invariant { engine.batch_invariant() } else { engine })
    }

    fn serve(
        &self,
        choice: DeviceChoice,
        source: &EngineSource,
        policy: Policy,
        requests: Vec<Request>,
    ) -> Result<Served> {
        let num_pages = [self.pages, self.host_pages];
        match source {
            EngineSource::Simulated(model) => {
                self.say(&format!(
                    "device: none, a {SIMULATED}: about 8B dense on an H200, by stated costs; virtual time"
                ));
                let clock = Clock::simulated();
                let mut engine = SimulatedEngine::new(*model, &num_pages, clock.clone());
                self.serve_with(&mut engine, clock, policy, requests)
            }
            EngineSource::Model { source, num_max_positions } => {
                let device = Device::select(choice)?;
                self.say(&format!("{}\nmodel: {}", device.describe(), source.name));
                let load = |stream: &_| source.load(stream, *num_max_positions);
                let begun = Instant::now();
                let mut engine = self.device_engine(&device, load)?;
                note(begun, "the engine is there");
                self.serve_with(&mut engine, Clock::wall(), policy, requests)
            }
        }
    }

    fn serve_with(
        &self,
        engine: &mut dyn Engine,
        clock: Clock,
        policy: Policy,
        requests: Vec<Request>,
    ) -> Result<Served> {
        let mut server = Server::new(engine, policy, clock)?;
        let num_requests = requests.len() as u64;
        let bar = if self.plans { ProgressBar::hidden() } else { step_bar(num_requests)? };
        let mut num_steps = 0;
        let served = server.serve_watched(requests, &mut |now_us, plan| {
            if self.plans {
                println!("\nat {:.3} ms\n{}", now_us / 1e3, plan.to_string().trim_end());
            }
            num_steps += 1;
            let num_admitted = plan.admitted.iter().filter(|joins| !joins.is_again).count();
            bar.inc(num_admitted as u64);
            bar.set_message(format!("step {num_steps}, {} in it", plan.feeds.len()));
        });
        bar.finish_and_clear();
        Ok(served?)
    }

    fn serve_on(
        &self,
        choice: DeviceChoice,
        num_ranks: usize,
        source: &EngineSource,
        policy: Policy,
        requests: Vec<Request>,
    ) -> Result<Served> {
        let options = ClusterOptions {
            roles: match self.roles.unwrap_or_default() {
                RolesArgument::Monolithic => Roles::Monolithic,
                RolesArgument::Disaggregated => Roles::Disaggregated(HandOver::ByLayer),
                RolesArgument::InSeries => Roles::Disaggregated(HandOver::AfterPrefill),
                RolesArgument::ThroughHost => Roles::Disaggregated(HandOver::ThroughHost),
            },
            policy,
            prefill_policy: Policy::continuous(self.slots, self.step_tokens),
            network: self.simulate_network,
            stop: None,
        };
        let begun = Instant::now();
        let world = match source {
            EngineSource::Simulated(_) => {
                self.say(&format!(
                    "device: none, a {SIMULATED}: about 8B dense on an H200, by stated costs; {num_ranks} ranks in real time"
                ));
                World::cpu(num_ranks)
            }
            EngineSource::Model { source, .. } => {
                let (device, name) = (Device::select(choice)?, &source.name);
                self.say(&format!("{}\nmodel: {name}, on {num_ranks} ranks", device.describe()));
                if device.is_cuda() { World::cuda(num_ranks)? } else { World::cpu(num_ranks) }
            }
        };
        note(begun, "kernels are loaded, and ranks reach each other");
        let make_engine = |rank: &Rank, clock: &Clock| -> Result<Box<dyn Engine>, String> {
            match source {
                EngineSource::Simulated(model) => {
                    let num_pages = [self.pages, self.host_pages];
                    Ok(Box::new(SimulatedEngine::new(*model, &num_pages, clock.clone())))
                }
                EngineSource::Model {
                    source: ModelSource { config, weights, .. },
                    num_max_positions,
                } => {
                    let load = |stream: &Arc<Stream>| {
                        let (config, weights) = (config.clone(), &**weights);
                        Ok(Transformer::load(
                            stream,
                            config,
                            weights,
                            *num_max_positions,
                            &mut |_| {},
                        )?)
                    };
                    let engine = self.device_engine(rank.device(), load);
                    let engine = engine.map_err(|error| format!("{error:#}"))?;
                    note(begun, &format!("the engine of rank {} is there", rank.index()));
                    Ok(Box::new(engine))
                }
            }
        };
        let cluster = serve_on(&world, &options, &make_engine, requests)?;
        note(begun, "all requests have ended");
        for (rank, report) in cluster.ranks.iter().enumerate() {
            if let Err(reason) = report {
                eprintln!("rank {rank} stopped: {reason}");
            }
        }
        Ok(cluster.served)
    }

    fn load(&self, vocab_size: u32, context: usize) -> Result<Vec<Request>> {
        let seed = self.seed;
        let sampling = self.sampling.seeded(seed)?;
        let sampled = |request: Request| Request {
            sampling: Sampling { seed: seed ^ request.id.0, ..sampling },
            ..request
        };
        Ok(self.greedy_load(vocab_size, context)?.into_iter().map(sampled).collect())
    }

    fn greedy_load(&self, vocab_size: u32, context: usize) -> Result<Vec<Request>> {
        if let Some(path) = &self.trace {
            let in_file = || format!("the trace {}", path.display());
            let file = File::open(path).with_context(in_file)?;
            let load = TraceLoad {
                speed: self.speed,
                shrink: self.shrink,
                num_max_requests: self.requests,
                vocab_size,
            };
            let requests = load.requests(BufReader::new(file)).with_context(in_file)?;
            ensure!(!requests.is_empty(), "the trace {} holds no requests", path.display());
            return Ok(requests);
        }
        let [prompts, answers] = self.lengths(context);
        let num_most_tokens = self.requests * (self.shared + prompts.1);
        ensure!(
            num_most_tokens <= MOST_TOKENS_OF_A_LOAD,
            "`--requests` with their prompts must be at most {MOST_TOKENS_OF_A_LOAD} tokens, got up \
             to {num_most_tokens}"
        );
        let drawn =
            |(median, max): (usize, usize)| LogNormal { median: median as f64, sigma: 0.8, max };
        let load = PoissonLoad {
            seed: self.seed,
            num_requests: self.requests,
            rate_per_s: self.rate,
            prompt: drawn(prompts),
            output: drawn(answers),
            num_families: 1,
            num_shared_tokens: self.shared,
            vocab_size,
        };
        Ok(load.requests())
    }

    fn policy(&self) -> Policy {
        let order = match self.order {
            OrderArgument::Arrival => Order::Arrival,
            OrderArgument::Deadline => Order::FirstTokenDeadline {
                ttft_us: self.ttft_ms * 1e3,
                prompt_token_us: self.prompt_token_us,
            },
        };
        let policy = match self.batching {
            BatchingArgument::Static => Policy::static_batches(self.slots),
            BatchingArgument::Continuous => {
                Policy::continuous(self.slots, self.step_tokens).ordered(order)
            }
        };
        let reserve = if self.whole_contexts { Reserve::WholeContext } else { Reserve::Pages };
        let shares_prefixes = policy.shares_prefixes && !self.no_sharing;
        Policy { reserve, shares_prefixes, ..policy }
    }
}
