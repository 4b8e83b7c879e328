//! The time of calls that several ranks make together.

use anyhow::Result;

use crate::comm::Rank;
use crate::device::{Event, Graph, Stream};
use crate::harness::{Batch, LEAD_SHARE, Mode};

/// One rank's samples of a side.
pub(super) struct RankClock {
    batch: Batch,
    /// Absent on the CPU, where NCCL's stand-in cannot be captured.
    lead_and_timed: Option<[Graph; 2]>,
    start: Event,
    end: Event,
    next_input: usize,
}

impl RankClock {
    /// Captures a sample's calls, each with the index of its inputs. One call was made before, for
    /// the first use of NCCL's channels is not for a capture.
    pub(super) fn new(
        stream: &Stream,
        batch: Batch,
        call: impl Fn(usize) -> Result<()>,
    ) -> Result<Self> {
        let device = stream.device();
        let calls = |num_calls: usize| {
            stream.capture(|_| {
                let first = batch.num_calls - num_calls;
                (first..batch.num_calls).try_for_each(|index| call(index % batch.num_inputs))
            })
        };
        let lead_and_timed = match device.is_cuda() && batch.mode == Mode::Steady {
            // The last inputs of the rotation: the first ones have to stay out of the cache.
            true => Some([calls(batch.num_calls.div_ceil(LEAD_SHARE))?, calls(batch.num_calls)?]),
            false => None,
        };
        let (start, end) = (device.new_event()?, device.new_event()?);
        Ok(Self { batch, lead_and_timed, start, end, next_input: 0 })
    }

    /// Microseconds of a call on this rank. All ranks take a sample together; `synchronize` waits
    /// for the stream.
    pub(super) fn sample(
        &mut self,
        rank: &Rank,
        stream: &Stream,
        call: impl Fn(usize) -> Result<()>,
        synchronize: impl Fn() -> Result<()>,
    ) -> Result<f64> {
        let Batch { num_calls, num_inputs, .. } = self.batch;
        rank.barrier()?;
        match &self.lead_and_timed {
            // The ranks are in step, and busy, when the clock starts.
            Some([lead, timed]) => {
                lead.launch(stream)?;
                stream.record(&self.start)?;
                timed.launch(stream)?;
            }
            None => {
                stream.record(&self.start)?;
                for _ in 0..num_calls {
                    call(self.next_input)?;
                    self.next_input = (self.next_input + 1) % num_inputs;
                }
            }
        }
        stream.record(&self.end)?;
        synchronize()?;
        Ok(self.start.elapsed_us(&self.end)? / num_calls as f64)
    }
}
