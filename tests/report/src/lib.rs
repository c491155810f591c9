//! How the programs that measure VMSRS show what they found: [`table`]s, [`chart`]s, percentiles of a
//! [`distribution`], files in a [`folder`], and [`steps`] for the person who watches.

pub mod chart;
pub mod distribution;
pub mod folder;
pub mod steps;
pub mod table;
