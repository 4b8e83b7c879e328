//! What the GPUs did while they were measured: clocks, power, temperature. Read, never set.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::results::{Conditions, Range};

/// Milliseconds between two readings of a GPU.
const PERIOD_MS: u32 = 200;
/// How long `nvidia-smi` may take for its first reading, and to go when it is stopped.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether it did.
const LOOK: Duration = Duration::from_millis(10);

/// Readings of some GPUs, from its start to [`finish`](Self::finish).
///
/// They are `nvidia-smi`'s, which runs beside the measurement; where there is none, or it does
/// not answer, there are no conditions, and the measurement goes on.
pub struct Recorder {
    smi: Option<Child>,
    seen: Arc<Mutex<Option<Conditions>>>,
}

impl Recorder {
    /// Starts to read the first `num_gpus` GPUs that this process sees; none: nothing to read.
    /// Waits until readings come, and takes those from then on.
    pub fn start(num_gpus: usize) -> Self {
        let seen = Arc::<Mutex<Option<Conditions>>>::default();
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let mut smi = match num_gpus {
            0 => None,
            _ => spawn(&smi_ids(num_gpus, visible.as_deref())).ok(),
        };
        if let Some(lines) = smi.as_mut().and_then(|smi| smi.stdout.take()) {
            let seen = seen.clone();
            // It ends with the process; nobody waits for it.
            thread::spawn(move || {
                for line in BufReader::new(lines).lines().map_while(Result::ok) {
                    if let Some(reading) = parse(&line) {
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        *seen =
                            Some(seen.take().map_or(reading.clone(), |seen| seen.and(&reading)));
                    }
                }
            });
        }
        let recorder = Self { smi, seen };
        if recorder.smi.is_some() {
            let started = Instant::now();
            while recorder.take().is_none() && started.elapsed() < PATIENCE {
                thread::sleep(LOOK);
            }
        }
        recorder
    }

    fn take(&self) -> Option<Conditions> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What was seen since the start.
    pub fn finish(self) -> Option<Conditions> {
        self.take()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let Some(smi) = &mut self.smi else { return };
        // If it cannot be stopped or does not go, it is left behind: nothing depends on it.
        let _ = smi.kill();
        let stopped = Instant::now();
        while matches!(smi.try_wait(), Ok(None)) && stopped.elapsed() < PATIENCE {
            thread::sleep(LOOK);
        }
    }
}

/// `nvidia-smi` does not renumber GPUs as this process's environment does.
fn smi_ids(num_gpus: usize, visible: Option<&str>) -> String {
    let ids: Vec<String> = match visible {
        Some(visible) => visible.split(',').take(num_gpus).map(|id| id.trim().to_owned()).collect(),
        None => (0..num_gpus).map(|ordinal| ordinal.to_string()).collect(),
    };
    ids.join(",")
}

fn spawn(ids: &str) -> std::io::Result<Child> {
    Command::new("nvidia-smi")
        .args(["-i", ids, "-lms", &PERIOD_MS.to_string()])
        .args(["--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader,nounits"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// A line as `1980, 612.34, 55`; nothing for a value that the GPU does not tell.
fn parse(line: &str) -> Option<Conditions> {
    let mut values = line.split(',').map(|value| value.trim().parse::<f64>().ok());
    let mut next = || values.next()?.map(|value| Range { low: value, high: value });
    Some(Conditions { sm_clock_mhz: next()?, power_w: next()?, temperature_c: next()? })
}

impl Conditions {
    fn and(&self, other: &Self) -> Self {
        let both = |a: Range, b: Range| Range { low: a.low.min(b.low), high: a.high.max(b.high) };
        Self {
            sm_clock_mhz: both(self.sm_clock_mhz, other.sm_clock_mhz),
            power_w: both(self.power_w, other.power_w),
            temperature_c: both(self.temperature_c, other.temperature_c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_add_up_to_ranges() {
        let seen = parse("1980, 612.34, 55").unwrap().and(&parse("1755, 640.00, 58").unwrap());
        assert_eq!(seen.sm_clock_mhz, Range { low: 1755.0, high: 1980.0 });
        assert_eq!(seen.power_w, Range { low: 612.34, high: 640.0 });
        assert_eq!(seen.temperature_c, Range { low: 55.0, high: 58.0 });
    }

    #[test]
    fn what_a_gpu_does_not_tell_is_no_reading() {
        for line in ["", "1980, [N/A], 55", "1980, 600", "No devices were found"] {
            assert!(parse(line).is_none(), "{line}");
        }
    }

    #[test]
    fn gpus_are_asked_for_as_the_environment_numbers_them() {
        assert_eq!(smi_ids(2, None), "0,1");
        assert_eq!(smi_ids(2, Some("3, 1,0")), "3,1");
        assert_eq!(smi_ids(1, Some("GPU-5d1c")), "GPU-5d1c");
    }

    #[test]
    fn without_gpus_there_is_nothing_to_read() {
        assert!(Recorder::start(0).finish().is_none());
    }
}
