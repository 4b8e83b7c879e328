//! Ranks on the CPU, one to four of them. [`shared`] holds what GPUs must do, too.

use std::time::{Duration, Instant};

use half::bf16;

use super::*;
use crate::device::{Buffer, DeviceError};

/// Checks that hold in every world.
pub(super) mod shared {
    use super::*;

    /// How many elements rank `from` sends to rank `to`: ragged, some of them none.
    fn count(from: usize, to: usize) -> usize {
        (3 * from + 5 * to) % 7 % 5
    }

    /// Element `i` of what rank `from` sends to rank `to`.
    fn element(from: usize, to: usize, i: usize) -> u32 {
        (10_000 * from + 100 * to + i) as u32
    }

    pub(in crate::comm) fn all_to_all_v_delivers_ragged_counts(rank: &Rank) -> Result<()> {
        let (own, size) = (rank.index(), rank.size());
        let stream = rank.device().new_stream()?;
        let send_counts: Vec<_> = (0..size).map(|to| count(own, to)).collect();
        let recv_counts: Vec<_> = (0..size).map(|from| count(from, own)).collect();
        let sent: Vec<u32> = (0..size)
            .flat_map(|to| (0..count(own, to)).map(move |i| element(own, to, i)))
            .collect();
        let expected: Vec<u32> = (0..size)
            .flat_map(|from| (0..count(from, own)).map(move |i| element(from, own, i)))
            .collect();
        let source = Buffer::from_slice(&stream, &sent)?;
        let destination = rank.device().alloc_zeroed::<u32>(expected.len() + 1)?;
        let communicator = rank.communicator()?;
        communicator.all_to_all_v(&stream, &source, &send_counts, &destination, &recv_counts)?;
        communicator.synchronize(&stream)?;
        let received = destination.to_vec(&stream)?;
        assert_eq!(received[..expected.len()], expected, "rank {own} of {size}");
        assert_eq!(received[expected.len()], 0, "nothing is written past the counts");
        Ok(())
    }

    pub(in crate::comm) fn all_to_all_v_of_nothing_ends(rank: &Rank) -> Result<()> {
        let stream = rank.device().new_stream()?;
        let empty = rank.device().alloc::<u32>(0)?;
        let counts = vec![0; rank.size()];
        let communicator = rank.communicator()?;
        communicator.all_to_all_v(&stream, &empty, &counts, &empty, &counts)?;
        communicator.synchronize(&stream)
    }

    pub(in crate::comm) fn all_reduce_sums_and_maximises(rank: &Rank) -> Result<()> {
        let (own, size) = (rank.index(), rank.size());
        let stream = rank.device().new_stream()?;
        let communicator = rank.communicator()?;
        let triangle = (size * (size - 1) / 2) as i32;

        let source = Buffer::from_slice(&stream, &[own as i32, -(own as i32), 100])?;
        let sum = rank.device().alloc::<i32>(3)?;
        communicator.all_reduce(&stream, &source, &sum, ReduceOp::Sum)?;
        communicator.synchronize(&stream)?;
        assert_eq!(sum.to_vec(&stream)?, [triangle, -triangle, 100 * size as i32]);
        assert_eq!(source.to_vec(&stream)?, [own as i32, -(own as i32), 100]);

        communicator.all_reduce(&stream, &source, &source, ReduceOp::Max)?;
        communicator.synchronize(&stream)?;
        assert_eq!(source.to_vec(&stream)?, [size as i32 - 1, 0, 100], "in place");

        let floats = Buffer::from_slice(&stream, &[0.5 + own as f32, -1.0])?;
        communicator.all_reduce(&stream, &floats, &floats, ReduceOp::Sum)?;
        communicator.synchronize(&stream)?;
        assert_eq!(floats.to_vec(&stream)?, [0.5 * size as f32 + triangle as f32, -(size as f32)]);

        let halves = [0.25 + own as f32, -4.0].map(bf16::from_f32);
        let halves = Buffer::from_slice(&stream, &halves)?;
        communicator.all_reduce(&stream, &halves, &halves, ReduceOp::Max)?;
        communicator.synchronize(&stream)?;
        let expected = [size as f32 - 0.75, -4.0].map(bf16::from_f32);
        assert_eq!(halves.to_vec(&stream)?, expected);
        Ok(())
    }

    pub(in crate::comm) fn all_gather_collects_by_rank(rank: &Rank) -> Result<()> {
        let (own, size) = (rank.index(), rank.size());
        let stream = rank.device().new_stream()?;
        let communicator = rank.communicator()?;
        let expected: Vec<u16> = (0..size as u16).flat_map(|from| [from; 3]).collect();

        let source = Buffer::from_slice(&stream, &[own as u16; 3])?;
        let gathered = rank.device().alloc::<u16>(3 * size)?;
        communicator.all_gather(&stream, &source, &gathered)?;
        communicator.synchronize(&stream)?;
        assert_eq!(gathered.to_vec(&stream)?, expected);

        let in_place = rank.device().alloc::<u16>(3 * size)?;
        let part = in_place.slice(3 * own..3 * own + 3);
        stream.fill(part, own as u16)?;
        communicator.all_gather(&stream, part, &in_place)?;
        communicator.synchronize(&stream)?;
        assert_eq!(in_place.to_vec(&stream)?, expected);
        Ok(())
    }

    pub(in crate::comm) fn broadcast_copies_the_roots(rank: &Rank) -> Result<()> {
        let stream = rank.device().new_stream()?;
        let communicator = rank.communicator()?;
        for root in 0..rank.size() {
            let buffer = Buffer::from_slice(&stream, &[rank.index() as u64 + 7; 5])?;
            communicator.broadcast(&stream, buffer.slice(1..4), root)?;
            communicator.synchronize(&stream)?;
            let (own, root) = (rank.index() as u64 + 7, root as u64 + 7);
            assert_eq!(buffer.to_vec(&stream)?, [own, root, root, root, own]);
        }
        Ok(())
    }

    /// Each rank sends to the next one and receives from the one before.
    pub(in crate::comm) fn a_ring_of_messages_goes_round(rank: &Rank) -> Result<()> {
        let (own, size) = (rank.index(), rank.size());
        let (next, previous) = ((own + 1) % size, (own + size - 1) % size);
        let stream = rank.device().new_stream()?;
        let source = Buffer::from_slice(&stream, &[own as f32; 1000])?;
        let destination = rank.device().alloc_zeroed::<f32>(1000)?;
        let communicator = rank.communicator()?;
        for _ in 0..3 {
            communicator.group(&stream, |group| {
                group.send(&source, next)?;
                group.recv(&destination, previous)
            })?;
            communicator.synchronize(&stream)?;
            assert_eq!(destination.to_vec(&stream)?, [previous as f32; 1000]);
            communicator.barrier(&stream)?;
        }
        Ok(())
    }

    /// Rank 0 sends two messages to rank 1, which must get them in that order.
    pub(in crate::comm) fn messages_keep_their_order(rank: &Rank) -> Result<()> {
        let stream = rank.device().new_stream()?;
        let communicator = rank.communicator()?;
        let buffer = Buffer::from_slice(&stream, &[1u8, 2])?;
        match rank.index() {
            0 => {
                communicator.send(&stream, buffer.slice(..1), 1)?;
                communicator.send(&stream, buffer.slice(1..), 1)?;
                communicator.synchronize(&stream)?;
            }
            1 => {
                stream.fill(&buffer, 0)?;
                communicator.recv(&stream, buffer.slice(1..), 0)?;
                communicator.recv(&stream, buffer.slice(..1), 0)?;
                communicator.synchronize(&stream)?;
                assert_eq!(buffer.to_vec(&stream)?, [2, 1]);
            }
            _ => {}
        }
        rank.barrier()
    }

    /// Every rank reads every other one's part by its address, as a copy.
    pub(in crate::comm) fn symmetric_memory_is_known_to_all(rank: &Rank) -> Result<()> {
        let stream = rank.device().new_stream()?;
        let symmetric = rank.symmetric_alloc::<u32>(16)?;
        assert_eq!(symmetric.local().len(), 16);
        assert_eq!(symmetric.addresses()[rank.index()], symmetric.local().address());
        assert_eq!(symmetric.peer_ptrs().to_vec(&stream)?, symmetric.addresses());
        let all = rank.exchange(symmetric.addresses().to_vec())?;
        assert!(all.iter().all(|addresses| addresses == symmetric.addresses()));
        rank.barrier()
    }
}

/// One test on the CPU for each shared check, in worlds of 1 to 4 ranks.
macro_rules! on_the_cpu {
    ($($check:ident),* $(,)?) => {$(
        #[test]
        fn $check() {
            for size in 1..=4 {
                World::cpu(size).try_run(shared::$check).unwrap();
            }
        }
    )*};
}

on_the_cpu!(
    all_to_all_v_delivers_ragged_counts,
    all_to_all_v_of_nothing_ends,
    all_reduce_sums_and_maximises,
    all_gather_collects_by_rank,
    broadcast_copies_the_roots,
    a_ring_of_messages_goes_round,
    symmetric_memory_is_known_to_all,
);

#[test]
fn messages_keep_their_order() {
    for size in 2..=4 {
        World::cpu(size).try_run(shared::messages_keep_their_order).unwrap();
    }
}

fn failures<T, E: std::fmt::Display>(results: Vec<Result<T, RankError<E>>>) -> Vec<String> {
    let text = |result: Result<T, RankError<E>>| match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    };
    results.into_iter().map(text).collect()
}

#[test]
fn a_failing_rank_releases_those_that_wait_for_it() {
    let start = Instant::now();
    let results = World::cpu(3).run(|rank| match rank.index() {
        1 => Err(CommError::from(DeviceError::NoPtx)),
        _ => rank.barrier(),
    });
    let failures = failures(results);
    assert!(failures[1].starts_with("rank 1: this build holds no GPU kernels"), "{failures:?}");
    for waiting in [0, 2] {
        assert!(
            failures[waiting].contains("barrier: gave up, because rank 1 failed: this build"),
            "{failures:?}"
        );
    }
    assert!(start.elapsed() < Duration::from_secs(10), "nobody waited for the deadline");
}

#[test]
fn a_panicking_rank_releases_those_that_wait_for_it() {
    let results = World::cpu(2).run(|rank| -> Result<()> {
        assert!(rank.index() != 0, "planted");
        let stream = rank.device().new_stream()?;
        let buffer = rank.device().alloc_zeroed::<u8>(4)?;
        rank.communicator()?.recv(&stream, &buffer, 0)
    });
    let failures = failures(results);
    assert_eq!(failures[0], "rank 0: panicked: planted");
    assert!(failures[1].contains("recv: gave up, because rank 0 failed"), "{failures:?}");
}

#[test]
fn try_run_returns_the_cause_and_not_a_consequence() {
    let error = World::cpu(3)
        .try_run(|rank| match rank.index() {
            2 => Err(CommError::from(DeviceError::NotRecorded)),
            _ => rank.barrier(),
        })
        .unwrap_err();
    assert_eq!(error.rank, 2);
    assert!(matches!(error.cause, RankFailure::Error(CommError::Device(_))), "{error}");
}

#[test]
fn a_rank_that_has_ended_is_not_waited_for() {
    let results = World::cpu(2).run(|rank| match rank.index() {
        0 => Ok(()),
        _ => rank.barrier(),
    });
    assert_eq!(failures(results)[1], "rank 1: barrier: rank 0 has ended without taking part");
}

#[test]
fn a_wait_ends_at_the_deadline_and_names_who_is_missing() {
    let world = World::cpu(3).with_deadline(Duration::from_millis(50));
    let results = world.run(|rank| match rank.index() {
        1 => {
            std::thread::sleep(Duration::from_millis(500));
            Ok(())
        }
        _ => rank.barrier(),
    });
    let failures = failures(results);
    assert!(
        [0, 2].iter().any(|&i: &usize| failures[i].ends_with("barrier: waited 50ms for rank 1")),
        "{failures:?}"
    );
}

#[test]
fn ranks_in_different_operations_are_told() {
    let results = World::cpu(2).run(|rank| match rank.index() {
        0 => rank.barrier(),
        _ => rank.exchange(1).map(drop),
    });
    let failures = failures(results).join("\n");
    assert!(
        failures.contains("expected all ranks in exchange, but rank 0 has come to barrier")
            || failures.contains("expected all ranks in barrier, but rank 1 has come to exchange"),
        "{failures}"
    );
}

#[test]
fn a_message_of_another_size_is_a_mismatch() {
    let results = World::cpu(2).run(|rank| {
        let stream = rank.device().new_stream()?;
        let buffer = rank.device().alloc_zeroed::<u32>(4)?;
        match rank.index() {
            0 => rank.communicator()?.send(&stream, &buffer, 1),
            _ => rank.communicator()?.recv(&stream, buffer.slice(..3), 0),
        }
    });
    let failures = failures(results);
    assert!(failures[1].ends_with("recv: expected 12 bytes, but rank 0 has 16"), "{failures:?}");
}

#[test]
fn counts_that_disagree_are_a_mismatch() {
    let results = World::cpu(2).run(|rank| {
        let stream = rank.device().new_stream()?;
        let buffer = rank.device().alloc_zeroed::<u32>(8)?;
        let received = if rank.index() == 0 { [1, 3] } else { [1, 1] };
        rank.communicator()?.all_to_all_v(&stream, &buffer, &[1, 1], &buffer, &received)
    });
    let failures = failures(results);
    assert!(
        failures[0].ends_with("all_to_all_v: expected 3 elements, but rank 1 has 1"),
        "{failures:?}"
    );
}

#[test]
fn bad_arguments_are_refused_before_anything_moves() {
    World::cpu(2)
        .try_run(|rank| -> Result<()> {
            let stream = rank.device().new_stream()?;
            let buffer = rank.device().alloc_zeroed::<f32>(4)?;
            let communicator = rank.communicator()?;
            let refusals = [
                communicator.send(&stream, &buffer, 2),
                communicator.broadcast(&stream, &buffer, 9),
                communicator.all_gather(&stream, &buffer, &buffer),
                communicator.all_reduce(&stream, &buffer, buffer.slice(..3), ReduceOp::Sum),
                communicator.all_to_all_v(&stream, &buffer, &[1], &buffer, &[1, 1]),
                communicator.all_to_all_v(&stream, &buffer, &[4, 1], &buffer, &[1, 1]),
                communicator.recv(&stream, buffer.slice(3..5), 0),
            ];
            for (i, refusal) in refusals.into_iter().enumerate() {
                assert!(
                    matches!(
                        refusal,
                        Err(CommError::Argument { .. }
                            | CommError::Device(DeviceError::OutOfRange { .. }))
                    ),
                    "refusal {i}: {refusal:?}"
                );
            }
            rank.barrier()
        })
        .unwrap();
}

#[test]
fn symmetric_lengths_must_agree() {
    let results = World::cpu(2).run(|rank| rank.symmetric_alloc::<u8>(4 + rank.index()).map(drop));
    let failures = failures(results);
    assert!(
        failures.iter().any(|failure| failure.contains("symmetric allocation: expected")),
        "{failures:?}"
    );
}

#[test]
fn symmetric_memory_outlives_its_owners_handle() {
    World::cpu(2)
        .try_run(|rank| -> Result<()> {
            let symmetric = rank.symmetric_alloc::<u8>(8)?;
            if rank.index() == 0 {
                drop(symmetric);
                return rank.barrier();
            }
            rank.barrier()?;
            let peer = symmetric.addresses()[0];
            // SAFETY: rank 1 holds its handle, so rank 0's part is alive.
            let view = unsafe { cuda_std::global::Global::<u8>::from_address(peer, 8) };
            assert!(!view.is_null());
            Ok(())
        })
        .unwrap();
}

#[test]
fn more_gpus_than_there_are_is_an_error() {
    let error = World::cuda(4096).unwrap_err().to_string();
    assert!(error.contains("number of GPUs") && error.contains("got 4096"), "{error}");
}
