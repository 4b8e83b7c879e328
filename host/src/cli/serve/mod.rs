//! `serve`: a load, one policy, and how long everybody waits.

mod arguments;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use arguments::EngineArguments;
pub use arguments::ServeArguments;
use farpage::comm::{Rank, World};
use farpage::device::{Device, DeviceChoice, Stream};
use farpage::harness::in_one_line;
use farpage::model::engine::Engine;
use farpage::model::{DeviceEngine, EngineOptions, Transformer};
use farpage::serve::disagg::{ClusterOptions, serve_on};
use farpage::serve::timeline::RequestMetrics;
use farpage::serve::{
    Clock, Ending, Policy, Request, SIMULATED, Served, Server, SimulatedEngine, SimulatedModel,
    Slo, Summary,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Outcome;
use super::model_source::ModelSource;

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

/// Tokens of a page.
const PAGE_SIZE: u32 = 16;
/// Tokens of prompts that a step of a static batch takes, which has no other limit.
const STATIC_STEP_TOKENS: usize = 2048;

/// What is said of the device where there is none.
fn no_device() -> String {
    format!("device: none, a {SIMULATED}: about 8B dense on an H200, by stated costs")
}

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
                self.say(&format!("{}; virtual time", no_device()));
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
            roles: self.roles(),
            policy,
            prefill_policy: Policy::continuous(self.slots, self.step_tokens),
            network: self.simulate_network,
            stop: None,
        };
        let begun = Instant::now();
        let world = match source {
            EngineSource::Simulated(_) => {
                self.say(&format!("{}; {num_ranks} ranks in real time", no_device()));
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
                EngineSource::Model { source, num_max_positions } => {
                    let load = |stream: &_| source.load_quietly(stream, *num_max_positions);
                    let engine = self.device_engine(rank.device(), load);
                    let engine = engine.map_err(|error| in_one_line(&error))?;
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
}
