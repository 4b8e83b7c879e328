//! What the rooms' tests share: a device's memory and executor, random inputs, comparison.
