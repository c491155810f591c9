//! The test-bed.
