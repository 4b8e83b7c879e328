//! What `serve` is told: the load, the policy, the engine's size.

use std::env;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use farpage::model::config::NamedShape;
use farpage::model::engine::Sampling;
use farpage::serve::disagg::{HandOver, Roles, SimulatedNetwork};
use farpage::serve::load::{LogNormal, PoissonLoad, TraceLoad};
use farpage::serve::{Order, Policy, Request, Reserve};

use crate::cli::model_source;
use crate::cli::numbers::{above_0, whole};
use crate::cli::sampling::SamplingArguments;
use crate::cli::selection::MOST_RANKS;

#[derive(Debug, Args)]
pub struct ServeArguments {
    #[command(flatten)]
    pub(super) engine: EngineArguments,

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
    pub(super) seed: u64,

    /// When requests join and leave.
    #[arg(long, value_enum, default_value_t)]
    batching: BatchingArgument,

    /// Requests that run at the same time.
    #[arg(long, default_value_t = 32, value_parser = whole::<usize>(1, 1 << 16))]
    pub(super) slots: usize,

    /// Tokens of a step, of prompts and decoding together.
    #[arg(long, value_name = "TOKENS", default_value_t = 160, value_parser = whole::<usize>(1, MOST_TOKENS))]
    pub(super) step_tokens: usize,

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
    pub(super) batch_invariant: bool,

    /// Issues decode steps kernel by kernel, instead of replaying them as one graph.
    #[arg(long)]
    pub(super) no_graph: bool,

    #[command(flatten)]
    sampling: SamplingArguments,

    /// Pages of 16 tokens in local memory.
    #[arg(long, default_value_t = 4096, value_parser = whole::<usize>(1, MOST_PAGES))]
    pub(super) pages: usize,

    /// Pages in the host's memory, to which cached ones go when room is wanted; at least 1.
    #[arg(long, default_value_t = 512, value_parser = whole::<usize>(1, MOST_PAGES))]
    pub(super) host_pages: usize,

    /// Most time to first token that users were promised, ms.
    #[arg(long, value_name = "MS", default_value_t = 2000.0, value_parser = above_0)]
    pub(super) ttft_ms: f64,

    /// Most mean time of each token after it, ms.
    #[arg(long, value_name = "MS", default_value_t = 50.0, value_parser = above_0)]
    pub(super) tpot_ms: f64,

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
    pub(super) simulate_network: Option<SimulatedNetwork>,

    /// Prints what is decided for each step of a single rank.
    #[arg(long, conflicts_with_all = ["json", "world_size"])]
    pub(super) plans: bool,

    /// Prints everything as JSON, each request's numbers too.
    #[arg(long)]
    pub(super) json: bool,
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
pub(super) struct EngineArguments {
    /// A folder with config.json and safetensors: Llama, Qwen2, Qwen3, Mixtral, Qwen2-MoE or
    /// Qwen3-MoE.
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<PathBuf>,

    /// Weights from the seed, in this shape.
    #[arg(long, value_name = "SHAPE", value_parser = model_source::shape)]
    pub(super) shape: Option<NamedShape>,

    /// No model: tokens are hashes, and times follow from stated costs of about 8B dense on an H200.
    #[arg(long)]
    pub(super) simulated: bool,
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

impl ServeArguments {
    /// How many ranks serve, refused if other arguments do not fit.
    pub(super) fn num_ranks(&self) -> Result<usize> {
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
    pub(super) fn num_max_context(&self, context: usize) -> u32 {
        let [(_, prompt), (_, answer)] = self.lengths(context);
        match self.trace {
            Some(_) => u32::MAX,
            None => (self.shared + prompt + answer) as u32,
        }
    }

    /// The requests, whose prompts are of a vocabulary, for a model of so long a context.
    pub(super) fn load(&self, vocab_size: u32, context: usize) -> Result<Vec<Request>> {
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

    /// What several ranks do for each other.
    pub(super) fn roles(&self) -> Roles {
        match self.roles.unwrap_or_default() {
            RolesArgument::Monolithic => Roles::Monolithic,
            RolesArgument::Disaggregated => Roles::Disaggregated(HandOver::ByLayer),
            RolesArgument::InSeries => Roles::Disaggregated(HandOver::AfterPrefill),
            RolesArgument::ThroughHost => Roles::Disaggregated(HandOver::ThroughHost),
        }
    }

    /// By what a scheduler goes.
    pub(super) fn policy(&self) -> Policy {
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
