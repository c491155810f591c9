//! Random numbers that cost a few instructions and are the same in each run.

/// Marsaglia's xorshift (Journal of Statistical Software 8(14), 2003).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Self {
        Self(88_172_645_463_325_252)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // Low bits of neighbours depend on each other.
        self.0 >> 16
    }
}
