//! `vmsrs top`: the running VMs, live.

mod draw;
mod model;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::model::Model;
use super::vms::{self, Vm};
use super::{Exit, Failure};
use crate::control::{Client, IncidentSummary, Request, Response};

/// Incidents that are listed.
const NEWEST: usize = 100;

/// Watch the running VMs of this user: work, window, and what fails
///
/// Shows, for each VM, what it seals and drops in a second, and for the selected one how full its window is, its incidents by kind and
/// the newest of them. q ends it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vmsrs top
  vmsrs top --name web --interval 0.5

Exit codes: 0 success, 1 no terminal, 2 invalid command line, 4 a VM that was named is not reachable.")]
pub(super) struct Arguments {
    #[command(flatten)]
    vms: vms::Selection,
    /// Seconds between two looks at the VMs
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let range = 0.1..=3600.0;
    match text.parse::<f64>() {
        Ok(seconds) if range.contains(&seconds) => Ok(seconds),
        _ => Err("give a number of seconds from 0.1 to 3600".to_owned()),
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let error =
            anyhow::anyhow!("no terminal: use `vmsrs status` or `vmsrs metrics` in scripts");
        return Err(Failure::new(Exit::Failure, error));
    }
    // That a VM is missing is said before the screen changes.
    let first = arguments.vms.ask()?;
    let mut model = Model::default();
    take(&mut model, first);
    let mut terminal = ratatui::try_init()?;
    let result = watch(&mut terminal, &mut model, arguments);
    ratatui::restore();
    result
}

fn watch(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    arguments: &Arguments,
) -> Result<Exit, Failure> {
    let interval = Duration::from_secs_f64(arguments.interval);
    loop {
        let asked = Instant::now();
        // Keys are answered at once, the VMs are asked again after the interval.
        loop {
            terminal.draw(|frame| draw::draw(frame, model))?;
            let rest = interval.saturating_sub(asked.elapsed());
            if !event::poll(rest)? {
                break;
            }
            if let Event::Key(key) = event::read()?
                && !press(model, key)
            {
                return Ok(Exit::Ok);
            }
        }
        if !model.paused {
            take(model, arguments.vms.ask()?);
        }
    }
}

/// Does what a key stands for; false if that is the end.
fn press(model: &mut Model, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return true;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if control => return false,
        KeyCode::Char('p') => model.paused = !model.paused,
        KeyCode::Up | KeyCode::Char('k') => model.select(false),
        KeyCode::Down | KeyCode::Char('j') => model.select(true),
        _ => {}
    }
    true
}

/// Takes what the VMs have said, and asks the selected one for its incidents.
fn take(model: &mut Model, vms: Vec<Vm>) {
    let paths: Vec<_> = vms.iter().map(|vm| vm.path.clone()).collect();
    let states = vms.into_iter().map(|vm| (vm.name, vm.status)).collect();
    model.update(states, Instant::now());
    let incidents = paths.get(model.selected).and_then(|path| {
        let response = Client::connect(path).ok()?.ask(Request::Incidents {});
        match response {
            Ok(Response::Incidents(list)) => Some(list),
            _ => None,
        }
    });
    model.incidents = newest(incidents.unwrap_or_default());
}

fn newest(mut list: Vec<IncidentSummary>) -> Vec<IncidentSummary> {
    list.reverse();
    list.truncate(NEWEST);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_select_pause_and_end() {
        let mut model = Model::default();
        let states = ["a", "b"].map(|name| (name.to_owned(), None));
        model.update(states.into(), Instant::now());
        let mut press = |code, modifiers| {
            let goes_on = super::press(&mut model, KeyEvent::new(code, modifiers));
            (goes_on, model.selected, model.paused)
        };
        let none = KeyModifiers::NONE;
        assert_eq!(press(KeyCode::Down, none), (true, 1, false));
        assert_eq!(press(KeyCode::Up, none), (true, 0, false));
        assert_eq!(press(KeyCode::Char('p'), none), (true, 0, true));
        assert_eq!(press(KeyCode::Char('c'), none), (true, 0, true));
        assert_eq!(
            press(KeyCode::Char('c'), KeyModifiers::CONTROL),
            (false, 0, true)
        );
        assert_eq!(press(KeyCode::Char('q'), none), (false, 0, true));
    }

    #[test]
    fn intervals_are_in_reason() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "NaN", "inf", "soon", "4000"] {
            seconds(wrong).unwrap_err();
        }
    }
}
