//! Generates the C headers and checks that the checked-in ones are current.
