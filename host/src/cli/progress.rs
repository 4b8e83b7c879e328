//! Progress on a terminal, and Ctrl-C.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use farpage::harness::Watch;
use indicatif::{ProgressBar, ProgressStyle};

/// What a shell reports for a program that Ctrl-C ended.
const ENDED_BY_CTRL_C: i32 = 130;

/// A line on the terminal that says what is being done; where there is no terminal, a line for each
/// entry, with the seconds gone. The first Ctrl-C asks for an end, the
/// second one ends the program.
pub struct Progress {
    bar: ProgressBar,
    begun: Instant,
    is_interrupted: Arc<AtomicBool>,
}

impl Progress {
    /// Takes over Ctrl-C; once in a program.
    pub fn start() -> Result<Self> {
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template("[{pos}/{len}] {prefix}: {msg}")?);
        let is_interrupted = Arc::new(AtomicBool::new(false));
        let (seen, shown) = (is_interrupted.clone(), bar.clone());
        ctrlc::set_handler(move || {
            if seen.swap(true, Ordering::Relaxed) {
                process::exit(ENDED_BY_CTRL_C);
            }
            shown.suspend(|| {
                eprintln!("interrupted: ending after this step; Ctrl-C again ends at once");
            });
        })
        .context("taking over Ctrl-C")?;
        Ok(Self { bar, begun: Instant::now(), is_interrupted })
    }

    /// Takes the line away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watch for Progress {
    fn entry(&self, done: usize, total: usize, name: &str) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        self.bar.set_prefix(name.to_owned());
        if self.bar.is_hidden() {
            let gone_s = self.begun.elapsed().as_secs_f64();
            eprintln!("{gone_s:5.1} s: {} of {total}: {name}", done + 1);
        }
    }

    fn step(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::Relaxed)
    }
}
