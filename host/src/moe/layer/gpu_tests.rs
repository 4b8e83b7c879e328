//! Layers on GPUs. A test that finds fewer than it says fails.

use gpu_kernels::gemm::reference::random;
use half::bf16;

use super::reference::HostWeights;
use super::tests::{deepseek_v3, shared};
use super::{Lane, Layer, LayerArgs, LayerOptions, RoutingArgs, Schedule, SharedBeside};
use crate::comm::{Rank, World};
use crate::device::{Buffer, Event};
use crate::moe::{ExchangeError, Transport};

fn check_all(size: usize) {
    let world =
        World::cuda(size).unwrap_or_else(|error| panic!("this test needs {size} GPUs: {error}"));
    for options in shared::all_options() {
        for case in shared::cases(size as u32) {
            let ran =
                world.try_run(|rank| shared::layer_equals_the_oracle(rank, &case, options, 3));
            ran.unwrap();
        }
        let case = shared::cases(size as u32).pop().expect("there are cases");
        world.try_run(|rank| shared::layer_is_replayed(rank, &case, options)).unwrap();
    }
}

#[test]
#[ignore = "needs 1 GPU"]
fn a_layer_on_one_gpu_equals_the_oracle() {
    check_all(1);
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_layer_on_two_gpus_equals_the_oracle() {
    check_all(2);
}

/// Calls of a graph whose time is taken.
const NUM_CALLS: usize = 4;
/// Times that each schedule has its turn.
const NUM_ROUNDS: usize = 7;

/// The schedules of a large layer, in turns, with the times of each. All give the same bits.
#[test]
#[ignore = "needs 2 GPUs"]
fn schedules_of_a_large_layer_give_the_same_bits() {
    let overlapped =
        |shared, exchange_sms, pack| Schedule::Overlapped { shared, exchange_sms, pack };
    let mut schedules = vec![Schedule::Sequential];
    for shared in [SharedBeside::Both, SharedBeside::Dispatch, SharedBeside::Combine] {
        for pack in [Lane::Compute, Lane::Exchange] {
            schedules.push(overlapped(shared, 16, pack));
        }
    }
    for exchange_sms in [24, 32, 66] {
        schedules.push(overlapped(SharedBeside::Both, exchange_sms, Lane::Exchange));
    }
    let world = World::cuda(2).unwrap_or_else(|error| panic!("this test needs 2 GPUs: {error}"));
    let ran = world.try_run(|rank| {
        let transports = [Transport::OneSided, Transport::Nccl];
        transports.into_iter().try_for_each(|transport| time_schedules(rank, transport, &schedules))
    });
    ran.unwrap();
}

fn time_schedules(
    rank: &Rank,
    transport: Transport,
    schedules: &[Schedule],
) -> Result<(), ExchangeError> {
    let stream = rank.device().new_stream()?;
    let shape = deepseek_v3(2, 4096);
    let host_weights = HostWeights::new(&shape, 5);
    let first = rank.index() * 128;
    let weights = host_weights.of_rank(&stream, &(first..first + 128).collect::<Vec<_>>())?;
    let seed = 11 + rank.index() as u64;
    let x = Buffer::from_slice(&stream, &random(seed, shape.x_elements(), 1.0))?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let logits: Vec<f32> = (0..4096 * 256).map(|_| 4.0 * rng.f32()).collect();
    let gating_output = Buffer::from_slice(&stream, &logits)?;
    let bias = rank.device().alloc_zeroed(256)?;
    let out = rank.device().alloc::<bf16>(shape.x_elements())?;
    let routing = RoutingArgs::Logits { gating_output: &gating_output, bias: Some(&bias) };
    let args = LayerArgs { x: &x, arriving: None, routing, weights: &weights, out: &out };
    let mut want = None;
    let mut prepared = Vec::new();
    for &schedule in schedules {
        let options = LayerOptions { transport, schedule, ..LayerOptions::default() };
        let layer = Layer::new(rank, shape, options)?;
        layer.run(&stream, &args)?;
        layer.synchronize(&stream)?;
        let got = stream.download(&out)?;
        assert!(*want.get_or_insert_with(|| got.clone()) == got, "{options:?}");
        let graph =
            stream.capture(|stream| (0..NUM_CALLS).try_for_each(|_| layer.run(stream, &args)))?;
        prepared.push((layer, graph, Vec::new()));
    }
    let ends = [rank.device().new_event()?, rank.device().new_event()?];
    for _ in 0..NUM_ROUNDS {
        for (layer, graph, times) in &mut prepared {
            rank.barrier()?;
            graph.launch(&stream)?;
            stream.record(&ends[0])?;
            graph.launch(&stream)?;
            stream.record(&ends[1])?;
            layer.synchronize(&stream)?;
            let us = rank.exchange(ends[0].elapsed_us(&ends[1])? / NUM_CALLS as f64)?;
            times.push(us.into_iter().fold(0.0, f64::max));
        }
    }
    for (schedule, (_, _, times)) in schedules.iter().zip(&mut prepared) {
        times.sort_by(f64::total_cmp);
        if rank.index() == 0 {
            let (first, last) = (times[0], times[NUM_ROUNDS - 1]);
            let median = times[NUM_ROUNDS / 2];
            println!("{transport:?} {schedule:?}: {median:.1} ({first:.1} to {last:.1}) µs");
        }
    }
    print_steps(rank, &prepared[0].0, &args)
}

fn print_steps(rank: &Rank, layer: &Layer, args: &LayerArgs<'_>) -> Result<(), ExchangeError> {
    let stream = rank.device().new_stream()?;
    let new_event = |_| rank.device().new_event();
    let events: Vec<Event> =
        (0..=layer.plan().steps.len()).map(new_event).collect::<Result<_, _>>()?;
    for _ in 0..3 {
        rank.barrier()?;
        layer.run_in_steps(&stream, args, |step| Ok(stream.record(&events[step])?))?;
        layer.synchronize(&stream)?;
    }
    for (step, ends) in layer.plan().steps.iter().zip(events.windows(2)) {
        let us = rank.exchange(ends[0].elapsed_us(&ends[1])?)?;
        if rank.index() == 0 {
            println!("  {:<15} {us:.1?} µs", step.op.name());
        }
    }
    Ok(())
}
