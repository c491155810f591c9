//! Progress for the person who watches: steps, and counts while the load runs.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::outcome::Progress;

/// The display. Without a terminal only the ends of steps are printed.
#[derive(Debug, Clone)]
pub struct Steps {
    bar: ProgressBar,
}

/// A step that is being made.
#[derive(Debug)]
pub struct Step<'a> {
    steps: &'a Steps,
    name: String,
    start: Instant,
}

impl Steps {
    /// An empty display.
    pub fn new() -> Self {
        Self {
            bar: ProgressBar::new_spinner(),
        }
    }

    /// Begins a step.
    pub fn begin(&self, name: impl Into<String>) -> Step<'_> {
        let name = name.into();
        self.bar.set_style(spinner());
        self.bar.set_message(name.clone());
        self.bar.enable_steady_tick(Duration::from_millis(100));
        Step {
            steps: self,
            name,
            start: Instant::now(),
        }
    }

    /// Shows what the step is about at the moment.
    pub fn detail(&self, detail: &str) {
        self.bar.set_message(detail.to_owned());
    }

    /// Shows the counts of the load.
    pub fn counts(&self, progress: &Progress) {
        self.bar.set_style(counter());
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
        self.bar.set_message(format!(
            "{} fatal, {} recovered, {} others failed",
            progress.fatal, progress.recovered, progress.innocent_failed
        ));
    }

    /// Takes the display away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Default for Steps {
    fn default() -> Self {
        Self::new()
    }
}

impl Step<'_> {
    /// Ends the step, with a word about how.
    pub fn end(self, how: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        let line = format!("  {:<44} {how:<28} {seconds:>6.1} s", self.name);
        self.steps.bar.suspend(|| eprintln!("{}", line.trim_end()));
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn counter() -> ProgressStyle {
    ProgressStyle::with_template("  {bar:30} {pos}/{len} requests, {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_styles_are_well_formed() {
        assert!(ProgressStyle::with_template("  {spinner} {msg}").is_ok());
        assert!(ProgressStyle::with_template("  {bar:30} {pos}/{len} requests, {msg}").is_ok());
    }
}
