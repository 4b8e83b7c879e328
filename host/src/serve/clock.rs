//! What time it is: the wall's, or one that a simulated engine moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A clock, in microseconds from its start. Clones are the same clock.
#[derive(Clone, Debug)]
pub enum Clock {
    /// Time as it passes.
    Wall(Instant),
    /// Time that passes only when somebody says so: runs repeat exactly, and waiting costs nothing.
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    /// Time as it passes, from now on.
    pub fn wall() -> Self {
        Self::Wall(Instant::now())
    }

    /// Time that is told to pass, from 0 on.
    pub fn simulated() -> Self {
        Self::Virtual(Arc::new(AtomicU64::new(0f64.to_bits())))
    }

    /// Microseconds since its start.
    pub fn now_us(&self) -> f64 {
        match self {
            Self::Wall(start) => start.elapsed().as_secs_f64() * 1e6,
            Self::Virtual(now) => f64::from_bits(now.load(Ordering::Relaxed)),
        }
    }

    /// Lets so much time pass.
    pub fn pass(&self, us: f64) {
        self.wait_until(self.now_us() + us);
    }

    /// Lets time pass until then; none, if it is then already.
    pub fn wait_until(&self, then_us: f64) {
        match self {
            Self::Wall(_) => {
                let left_us = then_us - self.now_us();
                if left_us > 0.0 {
                    let left = Duration::try_from_secs_f64(left_us / 1e6);
                    thread::sleep(left.unwrap_or(Duration::MAX));
                }
            }
            // Whoever moves a virtual clock is alone on it.
            Self::Virtual(now) => {
                let then_us = then_us.max(self.now_us());
                now.store(then_us.to_bits(), Ordering::Relaxed);
            }
        }
    }
}
