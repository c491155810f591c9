//! Tables as text: plain for people, Markdown for documents.

use std::fmt;

use comfy_table::{CellAlignment, Row, presets};

/// A column's heading, and how its cells are aligned.
#[derive(Debug, Clone, Copy)]
pub struct Heading(&'static str, CellAlignment);

/// A column of words, aligned to the left.
#[must_use]
pub const fn words(heading: &'static str) -> Heading {
    Heading(heading, CellAlignment::Left)
}

/// A column of numbers, aligned to the right.
#[must_use]
pub const fn numbers(heading: &'static str) -> Heading {
    Heading(heading, CellAlignment::Right)
}

/// A table; [`fmt::Display`] gives its lines, the last one with its newline.
#[derive(Debug, Clone)]
pub struct Table {
    table: comfy_table::Table,
    indent: &'static str,
}

impl Table {
    /// A table without borders, indented by two spaces, with a line below the headings.
    #[must_use]
    pub fn plain(headings: &[Heading]) -> Self {
        let mut table = Self::borderless();
        let separator = comfy_table::LineStyle::none().fill('-');
        let style = presets::NOTHING.header_separator(separator);
        table.table.load_style(style);
        table.head(headings);
        table
    }

    /// A table in Markdown.
    #[must_use]
    pub fn markdown(headings: &[Heading]) -> Self {
        let mut table = Self {
            table: comfy_table::Table::new(),
            indent: "",
        };
        table.table.load_style(presets::ASCII_MARKDOWN);
        table.head(headings);
        table
    }

    /// Names and values in two columns without headings, indented by two spaces.
    pub fn facts<N: ToString, V: ToString>(facts: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut table = Self::borderless();
        for (name, value) in facts {
            table.row([name.to_string(), value.to_string()]);
        }
        table
    }

    fn borderless() -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        Self {
            table,
            indent: "  ",
        }
    }

    fn head(&mut self, headings: &[Heading]) {
        let names: Vec<_> = headings.iter().map(|heading| heading.0).collect();
        self.table.set_header(Row::from(names));
        for (column, heading) in self.table.column_iter_mut().zip(headings) {
            column.set_cell_alignment(heading.1);
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.table
            .add_row(Row::from(cells.into_iter().collect::<Vec<_>>()));
        if !self.indent.is_empty() {
            let last = self.table.column_count() - 1;
            for (number, column) in self.table.column_iter_mut().enumerate() {
                column.set_padding((0, if number == last { 0 } else { 2 }));
            }
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let indent = self.indent;
        for line in self.table.lines() {
            writeln!(f, "{indent}{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADINGS: [Heading; 3] = [words("kind"), numbers("sent"), words("by")];

    fn fill(mut table: Table) -> String {
        for cells in [["a longer name", "7", "SIGSEGV"], ["µ", "1000", ""]] {
            table.row(cells.map(str::to_owned));
        }
        table.to_string()
    }

    #[test]
    fn a_plain_table_has_aligned_columns_and_one_line() {
        let lines = [
            "  kind           sent  by",
            "  ----------------------------",
            "  a longer name     7  SIGSEGV",
            "  µ              1000",
        ];
        assert_eq!(
            fill(Table::plain(&HEADINGS)).lines().collect::<Vec<_>>(),
            lines
        );
    }

    #[test]
    fn a_markdown_table_has_bars_between_cells() {
        let lines = [
            "| kind          | sent | by      |",
            "|---------------|------|---------|",
            "| a longer name |    7 | SIGSEGV |",
            "| µ             | 1000 |         |",
        ];
        assert_eq!(
            fill(Table::markdown(&HEADINGS)).lines().collect::<Vec<_>>(),
            lines
        );
    }

    #[test]
    fn facts_are_two_columns() {
        let facts = Table::facts([("users", "5"), ("connections", "16, 2")]);
        assert_eq!(
            facts.to_string(),
            "  users        5\n  connections  16, 2\n"
        );
    }
}
