//! The oracle.

/// The xor of all words: what the xor of the kernel's output must be.
pub fn fold(words: &[u32]) -> u32 {
    words.iter().fold(0, |folded, word| folded ^ word)
}

/// Sizes that tests read: nothing, less than a thread's share, uneven shares, many rounds.
pub fn cases() -> [super::contract::MemoryReadShape; 5] {
    [(0, 1), (16, 1), (16 * 1000, 3), (16 * 8 * 512, 1), (16 * 12_345, 2)]
        .map(|(num_bytes, num_blocks)| super::contract::MemoryReadShape { num_bytes, num_blocks })
}
