//! Results of the programs that test and measure VMSRS: [`table`]s, [`chart`]s, percentiles of a [`distribution`],
//! files in a [`folder`], and progress in [`steps`].

pub mod chart;
pub mod distribution;
pub mod folder;
pub mod steps;
pub mod table;
