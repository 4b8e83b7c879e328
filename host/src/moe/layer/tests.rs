//! Layers on the CPU, one to four ranks, and their plans. [`shared`] holds what GPUs must do, too.

use std::collections::BTreeSet;
use std::time::Duration;

use cuda_std::cpu::{ExecutorConfig, LaneOrder};
use gpu_kernels::dispatch::contract::ExchangeShape;
use gpu_kernels::dispatch::reference::{RankTokens, Routing};
use gpu_kernels::moe_topk::contract::TopkShape;

use super::reference::HostWeights;
use super::*;
use crate::comm::World;
use crate::moe::{ExchangeError, Transport};

/// Checks that hold in every world.
pub(super) mod shared {
    use gpu_kernels::gemm::reference::{check, random};
    use half::bf16;

    use super::super::reference::{TOLERANCE, exact_outputs};
    use super::*;
    use crate::comm::Rank;
    use crate::device::{Buffer, Stream};

    /// One layer: what each rank brings.
    #[derive(Clone)]
    pub struct Case {
        pub name: &'static str,
        pub shape: ExchangeShape,
        pub num_tokens: Vec<u32>,
        pub routing: Routing,
        pub intermediate: [u32; 2],
    }

    impl Case {
        pub fn layer(&self, rank: usize) -> LayerShape {
            LayerShape {
                exchange: self.shape,
                num_tokens: self.num_tokens[rank],
                intermediate: self.intermediate[0],
                shared_intermediate: self.intermediate[1],
                topk: None,
            }
        }

        /// A rank's tokens, with rows of order 1 and weights that sum up to 1 at most.
        pub fn tokens(&self, rank: usize, seed: u64) -> RankTokens {
            let seed = seed << 8 | rank as u64;
            let mut rng = fastrand::Rng::with_seed(seed);
            let num_tokens = self.num_tokens[rank];
            let mut tokens = RankTokens::random(&self.shape, num_tokens, self.routing, &mut rng);
            tokens.x = random(!seed, tokens.x.len(), 1.0);
            let scale = 1.0 / self.shape.topk as f32;
            tokens.topk_weights.iter_mut().for_each(|weight| *weight *= scale);
            tokens
        }
    }

    /// One rank's layer, its weights, and what the oracle says of it.
    struct Side<'a> {
        rank: &'a Rank,
        case: &'a Case,
        stream: Stream,
        layer: Layer,
        host_weights: HostWeights,
        weights: LayerWeights,
        out: Buffer<bf16>,
    }

    /// A rank's tokens in its memory.
    struct Uploaded {
        x: Buffer<bf16>,
        topk_ids: Buffer<i32>,
        topk_weights: Buffer<f32>,
    }

    impl<'a> Side<'a> {
        fn new(
            rank: &'a Rank,
            case: &'a Case,
            options: LayerOptions,
        ) -> Result<Self, ExchangeError> {
            let stream = rank.device().new_stream()?;
            let shape = case.layer(rank.index());
            let host_weights = HostWeights::new(&shape, 7);
            let num_experts = shape.num_local_experts() as usize;
            let first = rank.index() * num_experts;
            let experts: Vec<usize> = (first..first + num_experts).collect();
            Ok(Self {
                weights: host_weights.of_rank(&stream, &experts)?,
                layer: Layer::new(rank, shape, options)?,
                out: rank.device().alloc(shape.x_elements())?,
                rank,
                case,
                stream,
                host_weights,
            })
        }

        fn args<'b>(&'b self, tokens: &'b Uploaded) -> LayerArgs<'b> {
            let Uploaded { x, topk_ids, topk_weights } = tokens;
            let routing = RoutingArgs::Chosen { topk_ids, topk_weights };
            LayerArgs { x, arriving: None, routing, weights: &self.weights, out: &self.out }
        }

        fn check(&self, tokens: &RankTokens, call: u64) -> Result<(), ExchangeError> {
            self.layer.synchronize(&self.stream)?;
            let want = exact_outputs(&self.host_weights, tokens);
            let got = self.stream.download(&self.out)?;
            let checked = check(&got, &want, self.case.shape.hidden as usize, TOLERANCE);
            let (name, own) = (self.case.name, self.rank.index());
            checked.unwrap_or_else(|off| panic!("{name}, call {call}, rank {own}: {off}"));
            Ok(())
        }
    }

    impl Uploaded {
        fn new(stream: &Stream, tokens: &RankTokens) -> Result<Self, ExchangeError> {
            Ok(Self {
                x: Buffer::from_slice(stream, &tokens.x)?,
                topk_ids: Buffer::from_slice(stream, &tokens.topk_ids)?,
                topk_weights: Buffer::from_slice(stream, &tokens.topk_weights)?,
            })
        }
    }

    /// Call after call with other tokens, each whole output compared with the oracle.
    pub fn layer_equals_the_oracle(
        rank: &Rank,
        case: &Case,
        options: LayerOptions,
        num_calls: u64,
    ) -> Result<(), ExchangeError> {
        let side = Side::new(rank, case, options)?;
        for call in 0..num_calls {
            let tokens = case.tokens(rank.index(), call);
            let uploaded = Uploaded::new(&side.stream, &tokens)?;
            side.stream.fill(&side.out, bf16::NAN)?;
            side.layer.run(&side.stream, &side.args(&uploaded))?;
            side.check(&tokens, call)?;
        }
        rank.barrier()?;
        Ok(())
    }

    /// A graph of two calls, replayed with other tokens each time.
    pub fn layer_is_replayed(
        rank: &Rank,
        case: &Case,
        options: LayerOptions,
    ) -> Result<(), ExchangeError> {
        let side = Side::new(rank, case, options)?;
        let uploaded = Uploaded::new(&side.stream, &case.tokens(rank.index(), 0))?;
        // The first use of NCCL's channels is not for a capture.
        side.layer.run(&side.stream, &side.args(&uploaded))?;
        side.layer.synchronize(&side.stream)?;
        let graph = side.stream.capture(|stream| {
            (0..2).try_for_each(|_| side.layer.run(stream, &side.args(&uploaded)))
        })?;
        for call in 1..3 {
            let tokens = case.tokens(rank.index(), call);
            side.stream.upload(&tokens.x, &uploaded.x)?;
            side.stream.upload(&tokens.topk_ids, &uploaded.topk_ids)?;
            side.stream.upload(&tokens.topk_weights, &uploaded.topk_weights)?;
            side.stream.fill(&side.out, bf16::NAN)?;
            graph.launch(&side.stream)?;
            side.check(&tokens, call)?;
        }
        rank.barrier()?;
        Ok(())
    }

    /// All schedules, over both transports.
    pub fn all_options() -> Vec<LayerOptions> {
        let beside = |shared, pack| Schedule::Overlapped { shared, exchange_sms: 16, pack };
        let schedules = [
            Schedule::Sequential,
            beside(SharedBeside::Dispatch, Lane::Compute),
            beside(SharedBeside::Combine, Lane::Compute),
            beside(SharedBeside::Both, Lane::Compute),
            beside(SharedBeside::Both, Lane::Exchange),
        ];
        let options = |transport| {
            schedules.map(|schedule| LayerOptions { transport, schedule, ..Default::default() })
        };
        [Transport::Nccl, Transport::OneSided].into_iter().flat_map(options).collect()
    }

    /// Edge cases for `ep_size` ranks.
    pub fn cases(ep_size: u32) -> Vec<Case> {
        let case =
            |name, experts: u32, topk, sizes: [u32; 3], tokens: &dyn Fn(u32) -> u32, routing| {
                let num_tokens: Vec<u32> = (0..ep_size).map(tokens).collect();
                let [hidden, intermediate, shared] = sizes;
                let shape = ExchangeShape {
                    ep_size,
                    num_experts: experts * ep_size,
                    topk,
                    hidden,
                    num_max_tokens_per_rank: num_tokens.iter().copied().max().unwrap_or(0).max(1),
                };
                Case { name, shape, num_tokens, routing, intermediate: [intermediate, shared] }
            };
        let last_expert = (2 * ep_size - 1) as i32;
        vec![
            case("a token", 1, 1, [8, 8, 8], &|_| 1, Routing::Uniform),
            case("no tokens on rank 0", 2, 2, [16, 8, 24], &|r| 5 * r, Routing::Uniform),
            case("no tokens at all", 2, 2, [16, 8, 8], &|_| 0, Routing::Uniform),
            case("all to one expert", 2, 1, [40, 16, 16], &|_| 9, Routing::OneExpert(last_expert)),
            case("nobody anywhere", 2, 3, [24, 16, 16], &|_| 6, Routing::Nowhere),
            case("repeated ids, and none", 3, 5, [72, 24, 24], &|r| 9 - r, Routing::Ragged),
            case("popular experts", 4, 3, [72, 40, 72], &|r| 11 + r, Routing::Zipf),
        ]
    }
}

pub(super) fn deepseek_v3(ep_size: u32, num_tokens: u32) -> LayerShape {
    LayerShape {
        exchange: ExchangeShape {
            ep_size,
            num_experts: 256,
            topk: 8,
            hidden: 7168,
            num_max_tokens_per_rank: num_tokens,
        },
        num_tokens,
        intermediate: 2048,
        shared_intermediate: 2048,
        topk: Some(TopkShape::deepseek_v3(num_tokens)),
    }
}

#[test]
fn layers_equal_the_oracle_for_one_to_four_ranks() {
    for ep_size in 1..=4 {
        for case in shared::cases(ep_size) {
            for options in [LayerOptions::default(), shared::all_options()[0]] {
                let world = World::cpu(ep_size as usize);
                let ran =
                    world.try_run(|rank| shared::layer_equals_the_oracle(rank, &case, options, 2));
                ran.unwrap();
            }
        }
    }
}

#[test]
fn every_schedule_gives_the_same() {
    let case = shared::cases(2).pop().unwrap();
    for options in shared::all_options() {
        let world = World::cpu(2);
        world.try_run(|rank| shared::layer_equals_the_oracle(rank, &case, options, 2)).unwrap();
    }
}

#[test]
fn the_plan_names_the_kernels_that_run() {
    let case = shared::cases(2).pop().unwrap();
    for options in shared::all_options() {
        let world = World::cpu(2);
        let launched = world.try_run(|rank| -> Result<_, ExchangeError> {
            shared::layer_equals_the_oracle(rank, &case, options, 1)?;
            let device = PlannedFor::of(rank.device())?;
            let plan = LayerPlan::new(case.layer(rank.index()), options, device)?;
            Ok((plan, rank.device().launched_kernels()))
        });
        for (plan, launched) in launched.unwrap() {
            let kernels = plan.steps.iter().flat_map(|step| step.kernels.clone());
            let planned: BTreeSet<&str> = kernels.filter(|&kernel| kernel != "NCCL").collect();
            assert_eq!(planned.into_iter().collect::<Vec<_>>(), launched, "{plan}");
        }
    }
}

#[test]
fn plans_of_large_layers_as_text() {
    let plan = |shape, transport, schedule| {
        let options = LayerOptions { transport, schedule, ..LayerOptions::default() };
        LayerPlan::new(shape, options, PlannedFor::H200).unwrap().to_string()
    };
    let beside = |shared, pack| Schedule::Overlapped { shared, exchange_sms: 16, pack };
    let apart = |shared| beside(shared, Lane::Compute);
    let together = beside(SharedBeside::Both, Lane::Exchange);
    let prefill = deepseek_v3(2, 4096);
    let texts = [
        plan(prefill, Transport::Nccl, Schedule::Sequential),
        plan(prefill, Transport::OneSided, apart(SharedBeside::Both)),
        plan(prefill, Transport::OneSided, apart(SharedBeside::Dispatch)),
        plan(prefill, Transport::Nccl, apart(SharedBeside::Combine)),
        plan(deepseek_v3(4, 128), Transport::OneSided, apart(SharedBeside::Both)),
        plan(prefill, Transport::OneSided, together),
        // Sixteen blocks do not hold so many pairs.
        plan(deepseek_v3(2, 8192), Transport::OneSided, together),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn steps_come_after_what_they_read() {
    for options in shared::all_options() {
        let plan = LayerPlan::new(deepseek_v3(2, 4096), options, PlannedFor::H200).unwrap();
        for (index, step) in plan.steps.iter().enumerate() {
            for wait in &step.waits {
                let before = plan.steps[..index].iter().find(|before| before.op == *wait);
                assert!(before.is_some_and(|before| before.lane != step.lane), "{plan}");
            }
        }
        let crossing = plan.steps.iter().filter(|step| step.lane == Lane::Exchange).count();
        let expected = match options.schedule {
            Schedule::Sequential => 0,
            Schedule::Overlapped { pack: Lane::Compute, .. } => 2,
            Schedule::Overlapped { pack: Lane::Exchange, .. } => 4,
        };
        assert_eq!(crossing, expected, "{plan}");
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let refused = |shape: LayerShape, schedule| {
        let options = LayerOptions { schedule, ..LayerOptions::default() };
        LayerPlan::new(shape, options, PlannedFor::H200).unwrap_err().to_string()
    };
    let shape = deepseek_v3(2, 64);
    let other = LayerShape { topk: Some(TopkShape::deepseek_v3(32)), ..shape };
    assert_eq!(refused(other, Schedule::Sequential), "`topk.num_tokens` must be 64, got 32");
    let many = LayerShape { num_tokens: 65, ..shape };
    assert!(refused(many, Schedule::Sequential).starts_with("`num_tokens` must be at most"));
    let narrow = LayerShape { intermediate: 12, ..shape };
    assert_eq!(
        refused(narrow, Schedule::Sequential),
        "`n` must be a multiple of 8 up to 524280, got 12"
    );
    let (shared, pack) = (SharedBeside::Both, Lane::Compute);
    let nowhere = Schedule::Overlapped { shared, exchange_sms: 0, pack };
    assert_eq!(refused(shape, nowhere), "`exchange_sms` must be at least 1, got 0");
}

#[test]
fn layers_can_be_replayed() {
    let case = shared::cases(3).pop().unwrap();
    let world = World::cpu(3);
    world.try_run(|rank| shared::layer_is_replayed(rank, &case, LayerOptions::default())).unwrap();
}

#[test]
fn the_order_of_lanes_does_not_matter() {
    let case = shared::cases(2).pop().unwrap();
    let lane_order = LaneOrder::Seeded(3);
    let config = ExecutorConfig { num_workers: 1, lane_order, ..ExecutorConfig::default() };
    for options in [LayerOptions::default(), shared::all_options()[0]] {
        let world = World::cpu_with(2, config);
        world.try_run(|rank| shared::layer_equals_the_oracle(rank, &case, options, 1)).unwrap();
    }
}

/// Rank 1 makes one call, rank 0 two.
#[test]
fn a_late_rank_is_named() {
    let case = shared::cases(2).pop().unwrap();
    let results = World::cpu(2).run(|rank| {
        let timeout = Duration::from_millis(500);
        let options = LayerOptions { timeout, ..LayerOptions::default() };
        let num_calls = 2 - rank.index() as u64;
        shared::layer_equals_the_oracle(rank, &case, options, num_calls)
    });
    let said = results[0].as_ref().unwrap_err().to_string();
    assert!(said.contains("rank 0, dispatch: gave up on rank 1 after 500ms"), "{said}");
}
