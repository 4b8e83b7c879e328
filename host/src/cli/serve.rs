//! `serve`: a load, one policy, and how long everybody waits.

use std::env;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use farpage::comm::{Rank, World};
use farpage::model::engine::Engine;
use farpage::serve::disagg::{ClusterOptions, HandOver, Roles, SimulatedNetwork, serve_on};
use farpage::serve::load::{LogNormal, PoissonLoad, TraceLoad};
use farpage::serve::timeline::RequestMetrics;
use farpage::serve::{
    Clock, Order, Policy, Request, Reserve, SIMULATED, Served, Server, SimulatedEngine,
    SimulatedModel, Slo, Summary,
};
use serde::Serialize;

use super::Outcome;

/// On engines that are simulated: their tokens are no text, and their times follow from stated costs.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// A trace in the Mooncake format (JSON lines); without one, requests arrive independently.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Requests of a trace arrive this many times faster than it says.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,

    /// Lengths of a trace are divided by this.
    #[arg(long, value_name = "FACTOR", default_value_t = 1, value_parser = positive)]
    shrink: usize,

    /// Requests; of a trace, the first ones.
    #[arg(long, value_name = "COUNT", default_value_t = 128)]
    requests: usize,

    /// Requests a second, in the mean; without it all are there from the start.
    #[arg(long, value_name = "REQUESTS/S")]
    rate: Option<f64>,

    /// Prompts: median and most tokens, log-normal.
    #[arg(long, value_name = "MEDIANxMOST", value_parser = lengths, default_value = "512x2048")]
    prompts: (usize, usize),

    /// Answers: median and most tokens, log-normal.
    #[arg(long, value_name = "MEDIANxMOST", value_parser = lengths, default_value = "128x512")]
    answers: (usize, usize),

    /// Tokens that all prompts begin with.
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    shared: usize,

    /// What all requests follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// When requests join and leave.
    #[arg(long, value_enum, default_value_t)]
    batching: BatchingArgument,

    /// Requests that run at the same time.
    #[arg(long, default_value_t = 32)]
    slots: usize,

    /// Tokens of a step, of prompts and decoding together.
    #[arg(long, value_name = "TOKENS", default_value_t = 160)]
    step_tokens: usize,

    /// Whose prompt goes first.
    #[arg(long, value_enum, default_value_t)]
    order: OrderArgument,

    /// Reserves the longest context for each request, instead of pages as tokens come.
    #[arg(long)]
    whole_contexts: bool,

    /// Computes equal beginnings again for each request.
    #[arg(long)]
    no_sharing: bool,

    /// Pages of 16 tokens in local memory.
    #[arg(long, default_value_t = 4096)]
    pages: usize,

    /// Pages in the host's memory, to which cached ones go when room is wanted.
    #[arg(long, default_value_t = 4096)]
    host_pages: usize,

    /// Most time to first token that users were promised, ms.
    #[arg(long, value_name = "MS", default_value_t = 2000.0)]
    ttft_ms: f64,

    /// Most mean time of each token after it, ms.
    #[arg(long, value_name = "MS", default_value_t = 50.0)]
    tpot_ms: f64,

    /// Serves on so many ranks, on the wall's clock instead of a virtual one; by default as many as
    /// AISP_DISAGG_WORLD_SIZE says, or one.
    #[arg(long, value_name = "RANKS", value_parser = positive)]
    world_size: Option<usize>,

    /// What ranks do for each other.
    #[arg(long, value_enum, default_value_t)]
    roles: RolesArgument,

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

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum RolesArgument {
    /// Each serves its share of the requests.
    Monolithic,
    /// Half of them compute prompts for the other half, and push KV layer by layer.
    #[default]
    Disaggregated,
    /// The same, with KV handed over after prefill.
    InSeries,
}

/// What `--json` prints.
#[derive(Serialize)]
struct JsonReport<'a> {
    engine: &'static str,
    model: SimulatedModel,
    policy: Policy,
    summary: &'a Summary,
    requests: Vec<RequestMetrics>,
}

fn positive(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|&number| number > 0).ok_or("must be a number above 0")
}

/// Two numbers with an x between them.
fn lengths(text: &str) -> Result<(usize, usize), &'static str> {
    let numbers = text.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let numbers = numbers.filter(|&(median, most)| 0 < median && median <= most);
    numbers.ok_or("must be a median and a greatest number of tokens, as `512x2048`")
}

/// Two numbers with an x between them.
fn network(text: &str) -> Result<SimulatedNetwork, &'static str> {
    let numbers = text.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let numbers =
        numbers.filter(|&(gb_s, latency_us): &(f64, f64)| gb_s > 0.0 && latency_us >= 0.0);
    let network = numbers.map(|(gb_s, latency_us)| SimulatedNetwork { gb_s, latency_us });
    network.ok_or("must be GB/s above 0 and µs, as `20x10`")
}

/// What says how many ranks there are, if no argument does.
const WORLD_SIZE: &str = "AISP_DISAGG_WORLD_SIZE";

pub fn run(arguments: &ServeArguments) -> Result<Outcome> {
    let model = SimulatedModel::dense_8b();
    let requests = arguments.load(&model)?;
    let policy = arguments.policy(&model);
    let num_ranks = arguments.num_ranks()?;
    if !arguments.json {
        let ranks = match num_ranks {
            1 => "virtual time".to_owned(),
            ranks => format!("{ranks} ranks in real time"),
        };
        println!(
            "device: none, a {SIMULATED}: about 8B dense on an H200, by stated costs; {ranks}"
        );
    }
    let served = match num_ranks {
        1 => arguments.serve(model, policy, requests)?,
        ranks => arguments.serve_on(&World::cpu(ranks), model, policy, requests)?,
    };
    let slo = Slo { ttft_us: arguments.ttft_ms * 1e3, tpot_us: arguments.tpot_ms * 1e3 };
    let summary = served.summary(slo);
    if arguments.json {
        let requests = served.requests.iter().map(|(answer, timeline)| timeline.metrics(answer));
        let (requests, summary) = (requests.collect(), &summary);
        let report = JsonReport { engine: SIMULATED, model, policy, summary, requests };
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("\n{summary}");
        for (answer, _) in served.requests.iter().filter(|(a, _)| !a.ending.is_served()) {
            println!("request {}: {:?}", answer.id, answer.ending);
        }
    }
    Ok(if summary.num_failed == 0 { Outcome::Passed } else { Outcome::Violation })
}

impl ServeArguments {
    fn num_ranks(&self) -> Result<usize> {
        match (self.world_size, env::var(WORLD_SIZE)) {
            (Some(size), _) => Ok(size),
            (None, Ok(size)) => {
                positive(&size).map_err(|needed| anyhow!("{WORLD_SIZE} {needed}, got `{size}`"))
            }
            (None, Err(_)) => Ok(1),
        }
    }

    fn serve(
        &self,
        model: SimulatedModel,
        policy: Policy,
        requests: Vec<Request>,
    ) -> Result<Served> {
        let clock = Clock::simulated();
        let num_pages = [self.pages, self.host_pages];
        let mut engine = SimulatedEngine::new(model, &num_pages, clock.clone());
        let mut server = Server::new(&mut engine, policy, clock)?;
        Ok(server.serve_watched(requests, &mut |now_us, plan| {
            if self.plans {
                println!("\nat {:.3} ms\n{}", now_us / 1e3, plan.to_string().trim_end());
            }
        })?)
    }

    fn serve_on(
        &self,
        world: &World,
        model: SimulatedModel,
        policy: Policy,
        requests: Vec<Request>,
    ) -> Result<Served> {
        let options = ClusterOptions {
            roles: match self.roles {
                RolesArgument::Monolithic => Roles::Monolithic,
                RolesArgument::Disaggregated => Roles::Disaggregated(HandOver::ByLayer),
                RolesArgument::InSeries => Roles::Disaggregated(HandOver::AfterPrefill),
            },
            policy,
            prefill_policy: Policy::continuous(self.slots, self.step_tokens),
            network: self.simulate_network,
            stop: None,
        };
        let num_pages = [self.pages, self.host_pages];
        let make_engine = |_: &Rank, clock: &Clock| {
            let engine = SimulatedEngine::new(model, &num_pages, clock.clone());
            Ok(Box::new(engine) as Box<dyn Engine>)
        };
        let cluster = serve_on(world, &options, &make_engine, requests)?;
        for (rank, report) in cluster.ranks.iter().enumerate() {
            if let Err(reason) = report {
                eprintln!("rank {rank} stopped: {reason}");
            }
        }
        Ok(cluster.served)
    }

    fn load(&self, model: &SimulatedModel) -> Result<Vec<Request>> {
        let vocab_size = model.vocab_size;
        if let Some(path) = &self.trace {
            ensure!(self.speed > 0.0, "`--speed` must be above 0, got {}", self.speed);
            let in_file = || format!("the trace {}", path.display());
            let file = File::open(path).with_context(in_file)?;
            let load = TraceLoad {
                speed: self.speed,
                shrink: self.shrink,
                num_max_requests: self.requests,
                vocab_size,
            };
            return load.requests(BufReader::new(file)).with_context(in_file);
        }
        if let Some(rate) = self.rate {
            ensure!(rate > 0.0, "`--rate` must be above 0, got {rate}");
        }
        let lengths =
            |(median, max): (usize, usize)| LogNormal { median: median as f64, sigma: 0.8, max };
        let load = PoissonLoad {
            seed: self.seed,
            num_requests: self.requests,
            rate_per_s: self.rate,
            prompt: lengths(self.prompts),
            output: lengths(self.answers),
            num_families: 1,
            num_shared_tokens: self.shared,
            vocab_size,
        };
        Ok(load.requests())
    }

    fn policy(&self, model: &SimulatedModel) -> Policy {
        let order = match self.order {
            OrderArgument::Arrival => Order::Arrival,
            OrderArgument::Deadline => Order::FirstTokenDeadline {
                ttft_us: self.ttft_ms * 1e3,
                prompt_token_us: model.costs.flops_per_token / (model.costs.tflops * 1e6),
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
