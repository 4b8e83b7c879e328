//! Kernels of the rooms `dispatch` and `combine`: 4096 tokens of 7168, 8 of 256 experts each; 128 by
//! packets. Where it can, one rank stands for two, and sends to itself what it would send to its peer:
//! then no kernel waits for another one, and profilers, which run them one at a time, can replay each.
//! What the wire adds they do not see.

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
    let few = ExchangeOptions { num_sms: Some(16), ..by(Way::Bulk) };
    // A mirror has no NCCL: its kernels find a rank alone.
    let alone = |name, options, then_combine| {
        kernel(name, move |setting| {
            exchange(setting, &World::mirror(&setting.devices[0], 1), 4096, options, then_combine)
        })
    };
    let mirrored = |name, num_tokens, options, then_combine| {
        kernel(name, move |setting| {
            let world = World::mirror(&setting.devices[0], 2);
            exchange(setting, &world, num_tokens, options, then_combine)
        })
    };
    vec![
        alone("dispatch_pack_baseline", nccl, false),
        mirrored("dispatch_push_bulk", 4096, by(Way::Bulk), false),
        mirrored("dispatch_push_packets", 128, by(Way::Packets), false),
        alone("combine_sum_baseline", nccl, true),
        // What a mirror's dispatch brings lies where its own tokens do: there is nothing to push.
        KernelLaunch {
            num_gpus: 2,
            meets_itself: true,
            ..kernel("combine_push_bulk", move |setting| {
                exchange(setting, &World::of(setting.devices)?, 4096, by(Way::Bulk), true)
            })
        },
        mirrored("combine_pull_bulk", 4096, few, true),
        mirrored("combine_push_packets", 128, by(Way::Packets), true),
    ]
}

/// Dispatches, and combines zeros.
fn exchange(
    setting: &Setting<'_>,
    world: &World,
    num_tokens: u32,
    options: ExchangeOptions,
    then_combine: bool,
) -> Result<()> {
    let shape = ExchangeShape {
        ep_size: world.size() as u32,
        num_experts: 256,
        topk: 8,
        hidden: setting.pick(7168, 64),
        num_max_tokens_per_rank: setting.pick(num_tokens, 4),
    };
    // Tiny devices pull where large ones push.
    let num_sms = options.num_sms.or(setting.pick(None, Some(34)));
    let options = ExchangeOptions { num_sms, ..options };
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
        let partial = rank.device().alloc_zeroed::<bf16>(shape.slot_elements())?;
        let args = DispatchArgs { x: &x, topk_ids: &topk_ids, topk_weights: &topk_weights };
        for _ in 0..times {
            exchange.dispatch(&stream, &args)?;
            if then_combine {
                let args = CombineArgs { partial: &partial, topk_ids: &topk_ids, out: &out };
                exchange.combine(&stream, &args)?;
            }
        }
        exchange.synchronize(&stream)?;
        Ok(rank.barrier()?)
    };
    let done = world.try_run(on_rank);
    done.map(drop).map_err(|error| anyhow!("{error:#}"))
}
