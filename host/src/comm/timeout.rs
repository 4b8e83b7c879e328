//! How long kernels wait for other ranks' kernels where nothing else is said.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static MILLISECONDS: AtomicU32 = AtomicU32::new(10_000);

/// Longest wait of a kernel for another rank: what
/// [`ExchangeOptions`](crate::moe::ExchangeOptions) take by default. 10 seconds, unless it was set.
pub fn timeout() -> Duration {
    Duration::from_millis(MILLISECONDS.load(Ordering::Relaxed).into())
}

/// Sets [`timeout`] for this process, up to an hour: the argument of a command.
pub fn set_timeout(timeout: Duration) {
    let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).clamp(1, 3_600_000);
    MILLISECONDS.store(milliseconds, Ordering::Relaxed);
}
