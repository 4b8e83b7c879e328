//! One sample: the time of a call, or of many in a row.

use std::slice;

use anyhow::{Context, Result};

use crate::device::{Event, Graph, Stream};

/// How calls are issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Many calls in one graph, one right after the other: what a call costs in a busy stream.
    Steady,
    /// One call into an idle stream: with what it takes to start it.
    Single,
}

impl Mode {
    /// As arguments and results spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Single => "single",
        }
    }
}

/// What a sample is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How the calls are issued.
    pub mode: Mode,
    /// Calls of a sample; 1 if [`Mode::Single`].
    pub num_calls: usize,
    /// Sets of inputs that the calls rotate through; 1: the same every time.
    pub num_inputs: usize,
}

/// Takes a sample: microseconds of one call, the mean of the batch.
pub type Sampler<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// Of a steady sample, one call in so many goes before the clock starts.
pub(crate) const LEAD_SHARE: usize = 8;

/// Samples what `enqueue` gives to `stream`, called with the index of the inputs to use, from an
/// event before to an event after.
///
/// Before a steady sample some calls run that do not count, so that the device is still busy when
/// the timed ones are given to it, and their start-up is not inside.
///
/// # Errors
/// What `enqueue` or the device says.
pub fn stream_sampler<'a>(
    stream: &'a Stream,
    batch: Batch,
    enqueue: impl Fn(usize) -> Result<()> + 'a,
) -> Result<Sampler<'a>> {
    streams_sampler(slice::from_ref(stream), batch, enqueue)
}

/// As [`stream_sampler`], for work on several streams, whose calls end on the first: it takes the
/// time.
///
/// A steady sample is one graph, in which the other streams start and end with the first; in
/// between they are ordered by what `enqueue` gives them alone.
///
/// # Errors
/// What `enqueue` or a device says.
pub fn streams_sampler<'a>(
    streams: &'a [Stream],
    batch: Batch,
    enqueue: impl Fn(usize) -> Result<()> + 'a,
) -> Result<Sampler<'a>> {
    let (stream, others) = streams.split_first().context("no stream to sample")?;
    let Batch { mode, num_calls, num_inputs } = batch;
    let (start, end) = (stream.device().new_event()?, stream.device().new_event()?);
    if mode == Mode::Single {
        let mut inputs = (0..num_inputs).cycle();
        return Ok(Box::new(move || {
            streams.iter().try_for_each(Stream::synchronize)?;
            let input = inputs.next().unwrap_or(0);
            timed(stream, &start, &end, || enqueue(input))
        }));
    }
    let calls = |first: usize| {
        capture_together(stream, others, || {
            (first..num_calls).try_for_each(|call| enqueue(call % num_inputs))
        })
    };
    let timed_calls = calls(0)?;
    // The last inputs of the rotation: the first ones have to stay out of the cache.
    let num_lead = num_calls / LEAD_SHARE;
    let lead = match stream.device().is_cuda() && num_lead > 0 {
        true => Some(calls(num_calls - num_lead)?),
        false => None,
    };
    Ok(Box::new(move || {
        if let Some(lead) = &lead {
            lead.launch(stream)?;
        }
        let us = timed(stream, &start, &end, || Ok(timed_calls.launch(stream)?))?;
        Ok(us / num_calls as f64)
    }))
}

/// Captures the work that `work` gives to `stream` and to the others, all of which start and end
/// with it.
fn capture_together(
    stream: &Stream,
    others: &[Stream],
    work: impl FnOnce() -> Result<()>,
) -> Result<Graph> {
    let new_events = |streams: &[Stream]| -> Result<Vec<Event>> {
        streams.iter().map(|stream| Ok(stream.device().new_event()?)).collect()
    };
    let (start, ends) = (stream.device().new_event()?, new_events(others)?);
    stream.capture(|_| {
        if !others.is_empty() {
            stream.record(&start)?;
        }
        others.iter().try_for_each(|other| other.wait(&start))?;
        work()?;
        for (other, end) in others.iter().zip(&ends) {
            other.record(end)?;
            stream.wait(end)?;
        }
        Ok(())
    })
}

fn timed(
    stream: &Stream,
    start: &Event,
    end: &Event,
    work: impl FnOnce() -> Result<()>,
) -> Result<f64> {
    stream.record(start)?;
    work()?;
    stream.record(end)?;
    // The stream's own wait, which names a kernel that failed.
    stream.synchronize()?;
    Ok(start.elapsed_us(end)?)
}
