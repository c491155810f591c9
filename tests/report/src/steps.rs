//! Progress on the terminal: steps, and a bar for work that can be counted.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines with counts without a terminal.
const INTERVAL: Duration = Duration::from_secs(30);

const SPINNER: &str = "  {spinner} {msg}";
const BAR: &str = "  {bar:30} {pos}/{len} {msg} [{elapsed}]";

/// The display. Without a terminal it prints finished steps, and counts from time to time.
#[derive(Debug, Clone)]
pub struct Steps {
    bar: ProgressBar,
    /// When counts were last printed as a line.
    last: Rc<Cell<Instant>>,
}

/// A running step.
#[derive(Debug)]
pub struct Step<'a> {
    steps: &'a Steps,
    name: String,
    start: Instant,
}

/// Progress of work that can be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Units done.
    pub done: u64,
    /// Units in total.
    pub total: u64,
    /// The unit, and further details.
    pub words: String,
}

impl Steps {
    /// An empty display.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bar: ProgressBar::new_spinner(),
            last: Rc::new(Cell::new(Instant::now())),
        }
    }

    /// Begins a step.
    pub fn begin(&self, name: impl Into<String>) -> Step<'_> {
        let name = name.into();
        self.bar.set_style(style(SPINNER));
        self.bar.set_message(name.clone());
        self.bar.enable_steady_tick(Duration::from_millis(100));
        self.bar.reset_elapsed();
        self.last.set(Instant::now());
        Step {
            steps: self,
            name,
            start: Instant::now(),
        }
    }

    /// A function that shows what the step is doing; other threads may call it.
    pub fn detail(&self) -> impl Fn(&str) + Send + Sync + 'static {
        let bar = self.bar.clone();
        move |detail| bar.set_message(detail.to_owned())
    }

    /// Shows the step's progress.
    pub fn count(&self, count: &Count) {
        self.bar.set_style(style(BAR));
        self.bar.set_length(count.total);
        self.bar.set_position(count.done);
        self.bar.set_message(count.words.clone());
        if self.bar.is_hidden() && self.last.get().elapsed() >= INTERVAL {
            self.last.set(Instant::now());
            eprintln!("  {count}");
        }
    }

    /// Removes the display.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Default for Steps {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.done, self.total, self.words)
    }
}

impl Step<'_> {
    /// Time since it began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Ends the step, with a few words on its result.
    pub fn end(self, how: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        let line = format!("  {:<44} {how:<28} {seconds:>6.1} s", self.name);
        self.steps.bar.suspend(|| eprintln!("{}", line.trim_end()));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles_are_well_formed() {
        for template in [SPINNER, BAR] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
