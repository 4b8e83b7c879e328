//! Exchanges on the CPU, one to four ranks. [`shared`] holds what GPUs must do, too.

use std::time::{Duration, Instant};

use cuda_std::cpu::{ExecutorConfig, LaneOrder};
use gpu_kernels::dispatch::reference::{Case, RankTokens, Routing, cases};
use half::bf16;

use super::*;
use crate::comm::{RankError, World};
use crate::device::{Buffer, Device};

/// Checks that hold in every world.
pub(super) mod shared {
    use gpu_kernels::combine::reference::combine;
    use gpu_kernels::dispatch::reference::{Received, dispatch, random_rows};

    use super::*;

    /// One rank's side of an exchange, and what the oracle says of it.
    pub struct Side<'a> {
        pub rank: &'a Rank,
        pub stream: Stream,
        pub exchange: Exchange,
    }

    impl<'a> Side<'a> {
        pub fn new(
            rank: &'a Rank,
            shape: ExchangeShape,
            options: ExchangeOptions,
        ) -> Result<Self, ExchangeError> {
            let exchange = Exchange::new(rank, shape, options)?;
            Ok(Self { rank, stream: rank.device().new_stream()?, exchange })
        }

        pub fn check_received(&self, expected: &Received) -> Result<(), ExchangeError> {
            let received = self.exchange.received();
            let (x, ids) =
                (received.x.to_vec(&self.stream)?, received.topk_ids.to_vec(&self.stream)?);
            let weights = received.topk_weights.to_vec(&self.stream)?;
            let checked = expected.check(&self.exchange.shape(), &x, &ids, &weights);
            checked.unwrap_or_else(|off| panic!("rank {}: {off}", self.rank.index()));
            Ok(())
        }
    }

    /// This rank's tokens in its memory.
    pub struct Uploaded {
        pub x: Buffer<bf16>,
        pub topk_ids: Buffer<i32>,
        pub topk_weights: Buffer<f32>,
    }

    impl Uploaded {
        pub fn new(stream: &Stream, tokens: &RankTokens) -> Result<Self, ExchangeError> {
            Ok(Self {
                x: Buffer::from_slice(stream, &tokens.x)?,
                topk_ids: Buffer::from_slice(stream, &tokens.topk_ids)?,
                topk_weights: Buffer::from_slice(stream, &tokens.topk_weights)?,
            })
        }

        pub fn args(&self) -> DispatchArgs<'_> {
            let Self { x, topk_ids, topk_weights } = self;
            DispatchArgs { x, topk_ids, topk_weights }
        }
    }

    /// What the experts of each rank make of any slot.
    pub fn partials(shape: &ExchangeShape, seed: u64) -> Vec<Vec<bf16>> {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..shape.ep_size).map(|_| random_rows(shape.slot_elements(), &mut rng)).collect()
    }

    /// Dispatches and combines, call after call with other tokens.
    pub fn both_ways(
        rank: &Rank,
        case: &Case,
        options: ExchangeOptions,
        num_calls: u64,
    ) -> Result<(), ExchangeError> {
        let (shape, own) = (case.shape, rank.index());
        let side = Side::new(rank, shape, options)?;
        for call in 0..num_calls {
            let (tokens, partials) = (case.tokens(call), partials(&shape, call));
            let uploaded = Uploaded::new(&side.stream, &tokens[own])?;
            side.exchange.dispatch(&side.stream, &uploaded.args())?;
            side.exchange.synchronize(&side.stream)?;
            side.check_received(&dispatch(&shape, &tokens, own as u32))?;

            let partial = Buffer::from_slice(&side.stream, &partials[own])?;
            let out = rank.device().alloc::<bf16>(tokens[own].x.len())?;
            let topk_ids = &uploaded.topk_ids;
            let args = CombineArgs { partial: &partial, topk_ids, out: &out };
            side.exchange.combine(&side.stream, &args)?;
            side.exchange.synchronize(&side.stream)?;
            let want = combine(&shape, &partials, own, &tokens[own].topk_ids);
            let got = out.to_vec(&side.stream)?;
            let off = (0..want.len()).find(|&i| want[i].to_bits() != got[i].to_bits());
            assert_eq!(off, None, "{}, call {call}, rank {own}", case.name);
        }
        rank.barrier()?;
        Ok(())
    }

    /// A graph of three dispatches and a combine, replayed with other rows each time.
    pub fn replayed(
        rank: &Rank,
        case: &Case,
        options: ExchangeOptions,
    ) -> Result<(), ExchangeError> {
        let (shape, own) = (case.shape, rank.index());
        let side = Side::new(rank, shape, options)?;
        let uploaded = Uploaded::new(&side.stream, &case.tokens(0)[own])?;
        let partial = Buffer::from_slice(&side.stream, &partials(&shape, 0)[own])?;
        let out = rank.device().alloc::<bf16>(uploaded.x.len())?;
        let topk_ids = &uploaded.topk_ids;
        let combine_args = CombineArgs { partial: &partial, topk_ids, out: &out };
        // The first use of NCCL's channels is not for a capture.
        side.exchange.dispatch(&side.stream, &uploaded.args())?;
        side.exchange.combine(&side.stream, &combine_args)?;
        side.exchange.synchronize(&side.stream)?;
        let graph = side.stream.capture(|stream| {
            (0..3).try_for_each(|_| side.exchange.dispatch(stream, &uploaded.args()))?;
            side.exchange.combine(stream, &combine_args)
        })?;
        for call in 1..4 {
            let (tokens, partials) = (case.tokens(call), partials(&shape, call));
            side.stream.upload(&tokens[own].x, &uploaded.x)?;
            side.stream.upload(&tokens[own].topk_ids, topk_ids)?;
            side.stream.upload(&tokens[own].topk_weights, &uploaded.topk_weights)?;
            side.stream.upload(&partials[own], &partial)?;
            graph.launch(&side.stream)?;
            side.exchange.synchronize(&side.stream)?;
            side.check_received(&dispatch(&shape, &tokens, own as u32))?;
            let want = combine(&shape, &partials, own, &tokens[own].topk_ids);
            assert!(out.to_vec(&side.stream)? == want, "replay {call}, rank {own}");
        }
        rank.barrier()?;
        Ok(())
    }

    /// Rank 1 dies between two calls; what the others say.
    pub fn a_rank_dies(
        world: &World,
        case: &Case,
        options: ExchangeOptions,
    ) -> Vec<Result<(), RankError<ExchangeError>>> {
        world.run(|rank| -> Result<(), ExchangeError> {
            let side = Side::new(rank, case.shape, options)?;
            let uploaded = Uploaded::new(&side.stream, &case.tokens(0)[rank.index()])?;
            side.exchange.dispatch(&side.stream, &uploaded.args())?;
            side.exchange.synchronize(&side.stream)?;
            assert!(rank.index() != 1, "planted");
            side.exchange.dispatch(&side.stream, &uploaded.args())?;
            side.exchange.synchronize(&side.stream)
        })
    }

    /// Rank 1 begins `phase` and gives up, before rank 0 begins; what both say.
    pub fn a_rank_ends_in_mid(
        phase: Phase,
        world: &World,
        case: &Case,
        options: ExchangeOptions,
    ) -> Vec<Result<(), RankError<ExchangeError>>> {
        world.run(|rank| -> Result<(), ExchangeError> {
            let own = rank.index();
            let timeout = if own == 1 { Duration::from_millis(1) } else { options.timeout };
            let side = Side::new(rank, case.shape, ExchangeOptions { timeout, ..options })?;
            let uploaded = Uploaded::new(&side.stream, &case.tokens(0)[own])?;
            let partial = Buffer::from_slice(&side.stream, &partials(&case.shape, 0)[own])?;
            let out = rank.device().alloc::<bf16>(uploaded.x.len())?;
            if own == 0 {
                rank.barrier()?;
            }
            match phase {
                Phase::Dispatch => side.exchange.dispatch(&side.stream, &uploaded.args())?,
                Phase::Combine => {
                    let topk_ids = &uploaded.topk_ids;
                    let args = CombineArgs { partial: &partial, topk_ids, out: &out };
                    side.exchange.combine(&side.stream, &args)?;
                }
            }
            let done = side.exchange.synchronize(&side.stream);
            if own == 1 {
                rank.barrier()?;
            }
            done
        })
    }

    /// Rank 1's thread ends when its calls are under way, or done; the other ranks have given their
    /// streams more of them. What all say, the others before the `longest` time has passed.
    pub fn a_rank_is_killed_among_calls(
        world: &World,
        case: &Case,
        options: ExchangeOptions,
        [num_calls, num_calls_of_killed]: [usize; 2],
        longest: Duration,
    ) -> Vec<Result<(), RankError<ExchangeError>>> {
        world.run(|rank| -> Result<(), ExchangeError> {
            let own = rank.index();
            let side = Side::new(rank, case.shape, options)?;
            let uploaded = Uploaded::new(&side.stream, &case.tokens(0)[own])?;
            let partial = Buffer::from_slice(&side.stream, &partials(&case.shape, 0)[own])?;
            let out = rank.device().alloc::<bf16>(uploaded.x.len())?;
            let args = CombineArgs { partial: &partial, topk_ids: &uploaded.topk_ids, out: &out };
            let is_killed = own == 1;
            rank.barrier()?;
            let start = Instant::now();
            for _ in 0..if is_killed { num_calls_of_killed } else { num_calls } {
                side.exchange.dispatch(&side.stream, &uploaded.args())?;
                side.exchange.combine(&side.stream, &args)?;
            }
            assert!(!is_killed, "planted");
            let done = side.exchange.synchronize(&side.stream);
            let waited = start.elapsed();
            assert!(waited < longest, "rank {own} ended after {waited:?}: {done:?}");
            done
        })
    }

    /// What a mirror sends to its peer it gets from its peer.
    pub fn mirrored(device: &Device, case: &Case, options: ExchangeOptions) {
        let shape = case.shape;
        let run = World::mirror(device, 2).try_run(|rank| -> Result<(), ExchangeError> {
            let side = Side::new(rank, shape, options)?;
            let tokens = &case.tokens(0)[0];
            let uploaded = Uploaded::new(&side.stream, tokens)?;
            side.exchange.dispatch(&side.stream, &uploaded.args())?;
            let partials = &partials(&shape, 1)[0];
            let partial = Buffer::from_slice(&side.stream, partials)?;
            let out = rank.device().alloc::<bf16>(tokens.x.len())?;
            let args = CombineArgs { partial: &partial, topk_ids: &uploaded.topk_ids, out: &out };
            side.exchange.combine(&side.stream, &args)?;
            side.exchange.synchronize(&side.stream)?;
            // The results for the peer's tokens come back as the peer's for this rank's.
            let (own, peers) = partials.split_at(partials.len() / 2);
            let of_peer = [peers, own].concat();
            let want = combine(&shape, &[partials.clone(), of_peer], 0, &tokens.topk_ids);
            assert!(out.to_vec(&side.stream)? == want, "{}, {options:?}", case.name);
            assert!(rank.communicator().is_err());
            Ok(())
        });
        run.unwrap();
    }
}

fn case(ep_size: u32, name: &str) -> Case {
    cases(ep_size).into_iter().find(|case| case.name == name).unwrap()
}

fn one_sided(way: Way) -> ExchangeOptions {
    ExchangeOptions { way: Some(way), ..ExchangeOptions::default() }
}

const NCCL: ExchangeOptions = ExchangeOptions {
    transport: Transport::Nccl,
    way: None,
    num_sms: None,
    timeout: Duration::from_secs(10),
};

#[test]
fn all_transports_equal_the_reference_for_one_to_four_ranks() {
    for ep_size in 1..=4 {
        for case in cases(ep_size) {
            // With as many multiprocessors a bulk combine pulls, and pushes.
            let bulk = [2, 34]
                .map(|num_sms| ExchangeOptions { num_sms: Some(num_sms), ..one_sided(Way::Bulk) });
            for options in bulk.into_iter().chain([one_sided(Way::Packets), NCCL]) {
                let world = World::cpu(ep_size as usize);
                world.try_run(|rank| shared::both_ways(rank, &case, options, 2)).unwrap();
            }
        }
    }
}

#[test]
fn the_order_of_lanes_does_not_matter() {
    for seed in 0..2 {
        let lane_order = LaneOrder::Seeded(seed);
        let config = ExecutorConfig { num_workers: 1, lane_order, ..ExecutorConfig::default() };
        let case = case(3, "repeated ids, none, and tails");
        for options in [one_sided(Way::Bulk), one_sided(Way::Packets), NCCL] {
            let world = World::cpu_with(3, config);
            world.try_run(|rank| shared::both_ways(rank, &case, options, 3)).unwrap();
        }
    }
}

#[test]
fn graphs_can_be_replayed() {
    let case = case(3, "repeated ids, none, and tails");
    for way in [Way::Bulk, Way::Packets] {
        let world = World::cpu(3);
        world.try_run(|rank| shared::replayed(rank, &case, one_sided(way))).unwrap();
    }
}

#[test]
fn graphs_of_a_rank_alone_need_no_wire() {
    let case = case(1, "distinct experts");
    for options in [one_sided(Way::Bulk), one_sided(Way::Packets), NCCL] {
        World::cpu(1).try_run(|rank| shared::replayed(rank, &case, options)).unwrap();
    }
}

#[test]
fn a_dead_rank_is_named_with_phase_and_counts() {
    let timeout = Duration::from_millis(300);
    for (way, expected) in [(Way::Bulk, "1 messages"), (Way::Packets, "12 messages")] {
        let options = ExchangeOptions { timeout, num_sms: Some(2), ..one_sided(way) };
        let case = case(3, "distinct experts");
        let start = Instant::now();
        let results = shared::a_rank_dies(&World::cpu(3), &case, options);
        assert!(start.elapsed() < Duration::from_secs(10));
        for rank in [0, 2] {
            let said = results[rank].as_ref().unwrap_err().to_string();
            let begin =
                format!("rank {rank}: rank {rank}, dispatch: gave up on rank 1 after 300ms");
            assert!(said.starts_with(&begin), "{said}");
            assert!(said.contains(&format!("expected {expected} from it, saw 0")), "{said}");
        }
        assert!(results[1].as_ref().unwrap_err().to_string().contains("planted"));
    }
}

/// Rank 1's tokens are only written up to the fourth: its kernel ends in a fault there.
#[test]
fn a_rank_killed_in_mid_dispatch_ends_the_others() {
    let timeout = Duration::from_millis(500);
    let options = ExchangeOptions { timeout, num_sms: Some(1), ..one_sided(Way::Packets) };
    let mut case = case(3, "distinct experts");
    // A warp sends all of a row.
    case.shape.hidden = 256;
    let config = ExecutorConfig { num_workers: 1, ..ExecutorConfig::default() };
    let results = World::cpu_with(3, config).run(|rank| -> Result<(), ExchangeError> {
        let tokens = &case.tokens(0)[rank.index()];
        let side = shared::Side::new(rank, case.shape, options)?;
        let mut uploaded = shared::Uploaded::new(&side.stream, tokens)?;
        if rank.index() == 1 {
            let hidden = case.shape.hidden as usize;
            uploaded.x = rank.device().alloc(tokens.x.len())?;
            side.stream.upload(&tokens.x[..4 * hidden], uploaded.x.slice(..4 * hidden))?;
        }
        side.exchange.dispatch(&side.stream, &uploaded.args())?;
        side.exchange.synchronize(&side.stream)
    });
    assert!(results[1].as_ref().unwrap_err().to_string().contains("reads memory nothing wrote"));
    for rank in [0, 2] {
        let said = results[rank].as_ref().unwrap_err().to_string();
        assert!(said.contains("dispatch: gave up on rank 1"), "{said}");
        // The fourth may be half sent.
        let seen = ["saw 3", "saw 4"].iter().any(|seen| said.ends_with(seen));
        assert!(seen && said.contains("expected 12 messages from it"), "{said}");
    }
}

/// Rank 1's results are only written up to the fourth of each source: its kernel ends in a fault
/// there.
#[test]
fn a_rank_killed_in_mid_combine_ends_the_others() {
    let timeout = Duration::from_millis(500);
    // With as many multiprocessors a bulk combine pushes.
    for (way, num_sms) in [(Way::Packets, 1), (Way::Bulk, 34)] {
        let num_sms = Some(num_sms);
        let options = ExchangeOptions { timeout, num_sms, ..one_sided(way) };
        let case = case(3, "distinct experts");
        let (shape, tokens) = (case.shape, case.tokens(0));
        let config = ExecutorConfig { num_workers: 1, ..ExecutorConfig::default() };
        let results = World::cpu_with(3, config).run(|rank| -> Result<(), ExchangeError> {
            let own = rank.index();
            let side = shared::Side::new(rank, shape, options)?;
            let uploaded = shared::Uploaded::new(&side.stream, &tokens[own])?;
            side.exchange.dispatch(&side.stream, &uploaded.args())?;
            side.exchange.synchronize(&side.stream)?;
            let rows = &shared::partials(&shape, 0)[own];
            let partial = rank.device().alloc::<bf16>(rows.len())?;
            let per_source = rows.len() / 3;
            let written = if own == 1 { 4 * shape.hidden as usize } else { per_source };
            for first in [0, per_source, 2 * per_source] {
                let part = first..first + written;
                side.stream.upload(&rows[part.clone()], partial.slice(part))?;
            }
            let out = rank.device().alloc::<bf16>(uploaded.x.len())?;
            let args = CombineArgs { partial: &partial, topk_ids: &uploaded.topk_ids, out: &out };
            side.exchange.combine(&side.stream, &args)?;
            side.exchange.synchronize(&side.stream)
        });
        let killed = results[1].as_ref().unwrap_err().to_string();
        assert!(killed.contains("reads memory nothing wrote"), "{killed}");
        for rank in [0, 2] {
            let said = results[rank].as_ref().unwrap_err().to_string();
            assert!(said.contains("combine: gave up on rank 1 after 500ms: expected"), "{said}");
        }
    }
}

#[test]
fn a_rank_that_ends_in_mid_exchange_is_named() {
    let timeout = Duration::from_millis(500);
    let case = case(2, "distinct experts");
    for phase in [Phase::Dispatch, Phase::Combine] {
        for (way, num_sms) in [(Way::Packets, 2), (Way::Bulk, 2), (Way::Bulk, 34)] {
            if (phase, way) == (Phase::Dispatch, Way::Packets) {
                // Its packets are under way before it waits.
                continue;
            }
            let options = ExchangeOptions { timeout, num_sms: Some(num_sms), ..one_sided(way) };
            let start = Instant::now();
            let results = shared::a_rank_ends_in_mid(phase, &World::cpu(2), &case, options);
            assert!(start.elapsed() < Duration::from_secs(10));
            for (rank, timeout) in [(0, "500ms"), (1, "1ms")] {
                let said = results[rank].as_ref().err().map(ToString::to_string);
                let begin = format!("{phase}: gave up on rank {} after {timeout}: ", 1 - rank);
                let is_named = said.as_ref().is_some_and(|said| said.contains(&begin));
                assert!(is_named, "{phase}, {way:?}, {num_sms}, rank {rank}: {said:?}");
            }
        }
    }
}

#[test]
fn a_mirror_exchanges_with_itself() {
    let case = case(2, "distinct experts");
    for way in [Way::Packets, Way::Bulk] {
        let options = ExchangeOptions { num_sms: Some(2), ..one_sided(way) };
        shared::mirrored(&Device::cpu(), &case, options);
    }
}

/// Seven calls behind the one that waits in vain would each wait as long.
#[test]
fn a_rank_killed_among_calls_ends_the_others_in_the_time_of_one_wait() {
    let timeout = Duration::from_secs(2);
    for (way, num_sms) in [(Way::Packets, 2), (Way::Bulk, 34)] {
        let options = ExchangeOptions { timeout, num_sms: Some(num_sms), ..one_sided(way) };
        let (case, world) = (case(2, "distinct experts"), World::cpu(2));
        let (num_calls, longest) = ([5, 1], 4 * timeout);
        let results =
            shared::a_rank_is_killed_among_calls(&world, &case, options, num_calls, longest);
        let said = results[0].as_ref().unwrap_err().to_string();
        assert!(said.contains("dispatch: gave up on rank 1 after 2s: expected"), "{said}");
        assert!(results[1].as_ref().unwrap_err().to_string().contains("planted"));
    }
}

#[test]
fn a_rank_that_leaves_before_combine_is_named() {
    let timeout = Duration::from_millis(300);
    let options = ExchangeOptions { timeout, num_sms: Some(2), ..one_sided(Way::Packets) };
    let case = case(2, "distinct experts");
    let results = World::cpu(2).run(|rank| -> Result<(), ExchangeError> {
        let side = shared::Side::new(rank, case.shape, options)?;
        let uploaded = shared::Uploaded::new(&side.stream, &case.tokens(0)[rank.index()])?;
        side.exchange.dispatch(&side.stream, &uploaded.args())?;
        side.exchange.synchronize(&side.stream)?;
        assert!(rank.index() != 1, "planted");
        let partial = Buffer::from_slice(&side.stream, &shared::partials(&case.shape, 0)[0])?;
        let out = rank.device().alloc::<bf16>(uploaded.x.len())?;
        let args = CombineArgs { partial: &partial, topk_ids: &uploaded.topk_ids, out: &out };
        side.exchange.combine(&side.stream, &args)?;
        side.exchange.synchronize(&side.stream)
    });
    let said = results[0].as_ref().unwrap_err().to_string();
    // 12 tokens of 4 warps each, and the word that says the call has begun.
    assert!(
        said.contains("combine: gave up on rank 1 after 300ms: expected 49 messages"),
        "{said}"
    );
}

#[test]
fn ranks_that_disagree_are_told() {
    let shape = case(2, "distinct experts").shape;
    let results = World::cpu(2).run(|rank| {
        let topk = shape.topk - rank.index() as u32;
        Exchange::new(rank, ExchangeShape { topk, ..shape }, ExchangeOptions::default()).map(drop)
    });
    let said = results[0].as_ref().unwrap_err().to_string();
    assert!(said.contains("but rank 1 has") && said.contains("topk: 7"), "{said}");
}

#[test]
fn wrong_lengths_are_refused_before_anything_is_launched() {
    World::cpu(1)
        .try_run(|rank| -> Result<(), ExchangeError> {
            let shape = ExchangeShape {
                ep_size: 1,
                num_experts: 4,
                topk: 2,
                hidden: 16,
                num_max_tokens_per_rank: 3,
            };
            let side = shared::Side::new(rank, shape, ExchangeOptions::default())?;
            let mut rng = fastrand::Rng::with_seed(1);
            let mut refused = |num_tokens, x_tokens: usize| {
                let tokens = RankTokens::random(&shape, num_tokens, Routing::Uniform, &mut rng);
                let mut uploaded = shared::Uploaded::new(&side.stream, &tokens)?;
                uploaded.x = rank.device().alloc(16 * x_tokens)?;
                let error = side.exchange.dispatch(&side.stream, &uploaded.args()).unwrap_err();
                Ok::<_, ExchangeError>(error.to_string())
            };
            assert_eq!(
                refused(4, 4)?,
                "`num_tokens` must be at most num_max_tokens_per_rank (3), got 4"
            );
            assert_eq!(refused(2, 3)?, "`x` must be 32 elements long, got 48");
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_way_follows_from_the_number_of_tokens() {
    let shape = |num_max_tokens_per_rank| ExchangeShape {
        num_max_tokens_per_rank,
        ..case(2, "distinct experts").shape
    };
    assert_eq!(usual_way(&shape(256), true), Way::Packets);
    assert_eq!(usual_way(&shape(257), true), Way::Bulk);
    assert_eq!(usual_way(&shape(257), false), Way::Packets);
}
