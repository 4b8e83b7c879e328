//! Device time of what a stream is given.

use anyhow::Result;

use crate::device::Stream;

/// Microseconds of device time that `launches` calls of `run` take, start-up excluded: from an
/// event before the first to an event after the last.
pub fn device_us(
    stream: &Stream,
    launches: u64,
    mut run: impl FnMut() -> Result<()>,
) -> Result<f64> {
    let (start, end) = (stream.device().new_event()?, stream.device().new_event()?);
    stream.record(&start)?;
    for _ in 0..launches {
        run()?;
    }
    stream.record(&end)?;
    end.synchronize()?;
    Ok(start.elapsed_us(&end)?)
}

/// The median microseconds of one call of each of `sides`, which take turns for `rounds` rounds of
/// `launches` calls, after one round that does not count.
pub fn interleaved_medians_us<const N: usize>(
    stream: &Stream,
    rounds: usize,
    launches: u64,
    mut sides: [&mut dyn FnMut() -> Result<()>; N],
) -> Result<[f64; N]> {
    let mut samples = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for (side, samples) in sides.iter_mut().zip(&mut samples) {
            let us = device_us(stream, launches, &mut *side)? / launches as f64;
            if round > 0 {
                samples.push(us);
            }
        }
    }
    Ok(samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    }))
}
