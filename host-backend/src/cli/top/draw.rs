//! How `vmsrs top` looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Gauge, Paragraph, Row, Table, TableState};

use super::model::{Model, Vm};
use crate::cli::text::{duration, printable, printable_or_dash, time};
use crate::control::EngineStatus;
use crate::size::Size;

/// Lines of the window's gauges, with their border.
const WINDOW_LINES: u16 = 5;

/// From this share on a window is nearly full.
const NEARLY_FULL: f64 = 0.9;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    // Two more for the border, one for the head.
    let rows = model.vms.len().max(1) as u16 + 3;
    let [vms, window, below, help] = Layout::vertical([
        Constraint::Max(rows),
        Constraint::Length(WINDOW_LINES),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_vms(frame, vms, model);
    if let Some(Vm {
        name,
        status: Some(status),
        ..
    }) = model.current()
    {
        draw_window(frame, window, name, &status.recovery);
        let [kinds, newest] =
            Layout::horizontal([Constraint::Length(34), Constraint::Min(0)]).areas(below);
        draw_kinds(frame, kinds, &status.recovery);
        draw_newest(frame, newest, model);
    }
    let paused = if model.paused { "PAUSED  " } else { "" };
    let keys = format!("{paused}q quit  up/down select  p pause");
    frame.render_widget(Paragraph::new(keys), help);
}

fn head<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD))
}

fn draw_vms(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let block = Block::bordered().title("virtual machines");
    if model.vms.is_empty() {
        let text = "none runs, or they belong to another user";
        frame.render_widget(Paragraph::new(text).block(block), area);
        return;
    }
    let names = [
        "VM",
        "UPTIME",
        "VCPUS",
        "MEMORY",
        "DOMAINS",
        "PAGES",
        "BATCHES/s",
        "PAGES/s",
        "DROPPED/s",
        "INCIDENTS",
        "RESTARTS",
    ];
    let widths = [14, 12, 5, 8, 9, 9, 9, 9, 9, 9, 8].map(Constraint::Length);
    let table = Table::new(model.vms.iter().map(row), widths)
        .header(head(names))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(block);
    let mut state = TableState::new().with_selected(model.selected);
    frame.render_stateful_widget(table, area, &mut state);
}

fn row(vm: &Vm) -> Row<'static> {
    let name = printable(&vm.name);
    let Some(status) = &vm.status else {
        let style = Style::new().fg(Color::Red);
        return Row::new([name, "no answer".to_owned()]).style(style);
    };
    let rate = |rate: f64| format!("{rate:.1}");
    let rates = &vm.rates;
    let failing = match rates.incidents > 0.0 {
        true => Style::new().fg(Color::Yellow),
        false => Style::new(),
    };
    Row::new([
        Cell::new(name),
        Cell::new(duration(status.uptime_ms)),
        Cell::new(status.vcpus.to_string()),
        Cell::new(Size(status.memory_bytes).to_string()),
        Cell::new(status.recovery.domains.to_string()),
        Cell::new(status.recovery.pages.to_string()),
        Cell::new(rate(rates.batches)),
        Cell::new(rate(rates.sealed_pages)),
        Cell::new(rate(rates.dropped_pages)),
        Cell::new(status.recovery.all_incidents().to_string()).style(failing),
        Cell::new(status.restarts.to_string()),
    ])
}

fn draw_window(frame: &mut Frame<'_>, area: Rect, name: &str, recovery: &EngineStatus) {
    let block = Block::bordered().title(format!("window of {}", printable(name)));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let lines = Layout::vertical([Constraint::Length(1); 3]).split(inner);
    let used = recovery.vault_frames - recovery.free_frames.min(recovery.vault_frames);
    let gauges = [
        ("pages", recovery.pages, recovery.pages_max),
        ("vault", used, recovery.vault_frames),
        ("wiping", recovery.retired_frames, recovery.vault_frames),
    ];
    for (line, (what, part, all)) in lines.iter().zip(gauges) {
        let [label, bar] =
            Layout::horizontal([Constraint::Length(8), Constraint::Min(0)]).areas(*line);
        frame.render_widget(Line::raw(what), label);
        let ratio = (f64::from(part) / f64::from(all.max(1))).clamp(0.0, 1.0);
        let color = if ratio < NEARLY_FULL {
            Color::Green
        } else {
            Color::Red
        };
        let gauge = Gauge::default()
            .ratio(ratio)
            .label(format!("{part} of {all}"))
            .gauge_style(Style::new().fg(color));
        frame.render_widget(gauge, bar);
    }
}

fn draw_kinds(frame: &mut Frame<'_>, area: Rect, recovery: &EngineStatus) {
    let mut kinds: Vec<_> = recovery.incidents.iter().collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.count));
    let rows = kinds.iter().map(|kind| {
        let outcome = kind.outcome.name().to_owned();
        Row::new([printable(&kind.what), outcome, kind.count.to_string()])
    });
    let widths = [
        Constraint::Length(16),
        Constraint::Length(10),
        Constraint::Min(0),
    ];
    let table = Table::new(rows, widths).block(Block::bordered().title("incidents by kind"));
    frame.render_widget(table, area);
}

fn draw_newest(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = model.incidents.iter().map(|incident| {
        Row::new([
            incident.number.to_string(),
            time(incident.at_ms),
            printable(&incident.kind),
            printable_or_dash(incident.app.as_deref()),
            printable_or_dash(incident.domain.as_deref()),
        ])
    });
    let widths = [
        Constraint::Length(7),
        Constraint::Length(23),
        Constraint::Length(15),
        Constraint::Length(12),
        Constraint::Min(0),
    ];
    let table = Table::new(rows, widths)
        .header(head(["ID", "TIME (UTC)", "KIND", "APP", "DOMAIN"]))
        .block(Block::bordered().title("newest incidents"));
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::tests::status;
    use super::*;
    use crate::control::{IncidentOutcome, IncidentSummary};

    fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        (0..height).map(line).collect()
    }

    #[test]
    fn a_vm_is_shown_with_its_window_and_incidents() {
        let mut model = Model::default();
        let states = vec![
            ("web".into(), Some(status("web", 7, 3))),
            ("stuck".into(), None),
        ];
        model.update(states, Instant::now());
        model.incidents = vec![IncidentSummary {
            number: 9,
            at_ms: 0,
            kind: "double-free".into(),
            outcome: IncidentOutcome::Recovered,
            app: Some("ledger".into()),
            domain: Some("user\x1b7".into()),
            address: None,
        }];
        let screen = screen(&model, 120, 24);
        let has = |texts: &[&str]| {
            let found = |line: &String| texts.iter().all(|text| line.contains(text));
            assert!(
                screen.iter().any(found),
                "{texts:?} in\n{}",
                screen.join("\n")
            );
        };
        has(&["web", "5.000 s"]);
        has(&["stuck", "no answer"]);
        has(&["pages", "30 of 120"]);
        has(&["double-free", "3"]);
        has(&["9", "1970-01-01", "ledger", "user\u{fffd}7"]);
        has(&["q quit"]);
    }

    #[test]
    fn any_terminal_is_large_enough() {
        let mut model = Model::default();
        for (width, height) in [(1, 1), (20, 3), (300, 100)] {
            screen(&model, width, height);
        }
        let many = (0..50).map(|number| (number.to_string(), Some(status("vm", 0, 0))));
        model.update(many.collect(), Instant::now());
        model.paused = true;
        for (width, height) in [(1, 1), (20, 3), (80, 24), (300, 100)] {
            screen(&model, width, height);
        }
    }
}
