//! Kernels of the rooms `dispatch` and `combine`: 4096 tokens of 7168, 8 of 256 experts each; 128 by
//! packets.

use anyhow::{Result, anyhow};
use gpu_kernels::dispatch::contract::ExchangeShape;
use gpu_kernels::dispatch::reference::{RankTokens, Routing};
use half::bf16;

use super::{KernelLaunch, Setting, kernel};
use crate::comm::{Rank, World};
use crate::device::Buffer;
use crate::moe::exchange::{CombineArgs, DispatchArgs, Way};
use crate::moe::{Exchange, ExchangeOptions, Transport};

pub(super) fn launches() -> Vec<KernelLaunch> {
    let nccl = ExchangeOptions { transport: Transport::Nccl, ..ExchangeOptions::default() };
    let by = |way| ExchangeOptions { way: Some(way), ..ExchangeOptions::default() };
    let two_ranks = |name, num_tokens, options, then_combine| KernelLaunch {
        num_gpus: 2,
        ..kernel(name, move |setting| exchange(setting, num_tokens, options, then_combine))
    };
    vec![
        two_ranks("dispatch_pack_baseline", 4096, nccl, false),
        two_ranks("dispatch_push_bulk", 4096, by(Way::Bulk), false),
        two_ranks("dispatch_push_packets", 128, by(Way::Packets), false),
        two_ranks("combine_sum_baseline", 4096, nccl, true),
        two_ranks("combine_push_packets", 4096, by(Way::Bulk), true),
    ]
}

/// Dispatches on all ranks at once, and combines what it received as if experts changed nothing.
fn exchange(
    setting: &Setting<'_>,
    num_tokens: u32,
    options: ExchangeOptions,
    then_combine: bool,
) -> Result<()> {
    let shape = ExchangeShape {
        ep_size: setting.devices.len() as u32,
        num_experts: 256,
        topk: 8,
        hidden: setting.pick(7168, 64),
        num_max_tokens_per_rank: setting.pick(num_tokens, 4),
    };
    let (times, num_tokens) = (setting.times, shape.num_max_tokens_per_rank);
    let on_rank = |rank: &Rank| -> Result<()> {
        let mut rng = fastrand::Rng::with_seed(rank.index() as u64);
        let tokens = RankTokens::random(&shape, num_tokens, Routing::Uniform, &mut rng);
        let exchange = Exchange::new(rank, shape, options)?;
        let stream = rank.device().new_stream()?;
        let x = Buffer::from_slice(&stream, &tokens.x)?;
        let topk_ids = Buffer::from_slice(&stream, &tokens.topk_ids)?;
        let topk_weights = Buffer::from_slice(&stream, &tokens.topk_weights)?;
        let out = rank.device().alloc::<bf16>(tokens.x.len())?;
        let args = DispatchArgs { x: &x, topk_ids: &topk_ids, topk_weights: &topk_weights };
        for _ in 0..times {
            exchange.dispatch(&stream, &args)?;
            if then_combine {
                let partial = exchange.received().x;
                let args = CombineArgs { partial, topk_ids: &topk_ids, out: &out };
                exchange.combine(&stream, &args)?;
            }
        }
        exchange.synchronize(&stream)?;
        Ok(rank.barrier()?)
    };
    let done = World::of(setting.devices)?.try_run(on_rank);
    done.map(drop).map_err(|error| anyhow!("{error:#}"))
}
