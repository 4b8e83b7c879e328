//! Who looks on while the harness works.

/// Is told how far the work is, and may end it.
pub trait Watch {
    /// Target and shape number `done` of `total` begins.
    fn entry(&self, done: usize, total: usize, name: &str);

    /// What is being done for it.
    fn step(&self, what: &str);

    /// Whether to stop at the next occasion.
    fn is_interrupted(&self) -> bool;
}

/// Nobody looks on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Watch for Silent {
    fn entry(&self, _done: usize, _total: usize, _name: &str) {}

    fn step(&self, _what: &str) {}

    fn is_interrupted(&self) -> bool {
        false
    }
}
