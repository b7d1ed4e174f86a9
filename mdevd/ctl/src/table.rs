//! Text for people: columns that line up and fit the terminal, and text from outside made safe for it.
//!
//! A table is plain lines, as of `ls -l`. On a terminal it is made to fit: the last column wraps, others are shortened
//! with `…`. Elsewhere nothing is shortened. Whether colour stays is decided where the text is written (`anstream`).

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use anstyle::{AnsiColor, Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// For names that head a group.
pub const BOLD: Style = Style::new().bold();
/// For what is well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// For what deserves a look.
pub const ODD: Style = AnsiColor::Yellow.on_default();
/// For what is wrong.
pub const BAD: Style = AnsiColor::Red.on_default();
/// For what is there for completeness.
pub const DIM: Style = Style::new().dimmed();
/// For all else.
pub const PLAIN: Style = Style::new();

/// Between two columns.
const GAP: usize = 2;
/// No column is made narrower than this.
const NARROWEST: usize = 6;

/// A field of a table.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A field with a style.
    pub fn styled(text: &str, style: Style) -> Self {
        Self { text: safe(text), style }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::styled(text, PLAIN)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::styled(&text, PLAIN)
    }
}

/// What a column may lose when the terminal is too narrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Nothing, until nothing else is left: a name that is there to be copied.
    Keep,
    /// Its end.
    Shorten,
    /// Its end, and before any other gives way: what is there only to recognise it by.
    Hint,
    /// Nothing: it goes on below itself. For the last column.
    Wrap,
}

/// Rows of cells under the same columns.
#[derive(Debug)]
pub struct Table {
    fits: Vec<Fit>,
    indent: usize,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table, each line of it moved to the right by `indent`.
    pub fn new(indent: usize, fits: &[Fit]) -> Self {
        Self { fits: fits.to_vec(), indent, rows: Vec::new() }
    }

    /// Adds a line of column names.
    pub fn header(&mut self, names: &[&str]) {
        self.rows.push(names.iter().map(|name| Cell::styled(name, BOLD)).collect());
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// Each row as text, with a newline at its end; `width` is the terminal's, if there is one.
    pub fn rows(&self, width: Option<usize>) -> Vec<String> {
        let widths = self.widths(width);
        self.rows.iter().map(|row| self.line(row, &widths, width.is_some())).collect()
    }

    /// All of it as text.
    pub fn render(&self, width: Option<usize>) -> String {
        self.rows(width).concat()
    }

    fn widths(&self, terminal: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
        let Some(terminal) = terminal else { return widths };
        // Wrapped text needs room to be read; shortened text gives way before it gets narrower than that.
        let room = 4 * NARROWEST;
        for (fit, floor) in [
            (Fit::Hint, room),
            (Fit::Wrap, room),
            (Fit::Hint, NARROWEST),
            (Fit::Shorten, NARROWEST),
            (Fit::Keep, NARROWEST),
        ] {
            loop {
                let total = self.indent + widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
                if total <= terminal {
                    return widths;
                }
                let widest = widths
                    .iter_mut()
                    .zip(&self.fits)
                    .filter(|(width, of)| **of == fit && **width > floor)
                    .map(|(width, _)| width)
                    .max();
                let Some(widest) = widest else { break };
                *widest -= 1;
            }
        }
        widths
    }

    fn line(&self, row: &[Cell], widths: &[usize], fitted: bool) -> String {
        let mut line = " ".repeat(self.indent);
        let mut column = self.indent;
        let columns = row.iter().zip(widths).zip(&self.fits);
        let last = row.iter().rposition(|cell| !cell.text.is_empty());
        for (index, ((cell, width), fit)) in columns.enumerate() {
            let style = cell.style;
            if fitted && *fit == Fit::Wrap {
                let pieces = wrap(&cell.text, *width);
                for (nth, piece) in pieces.iter().enumerate() {
                    if nth > 0 {
                        let _ = write!(line, "\n{}", " ".repeat(column));
                    }
                    let _ = write!(line, "{style}{piece}{style:#}");
                }
                break;
            }
            let text = if fitted { shortened(&cell.text, *width) } else { cell.text.clone() };
            let _ = write!(line, "{style}{text}{style:#}");
            if last.is_none_or(|last| index >= last) {
                break; // no blanks at the end of a line
            }
            let _ = write!(line, "{}", " ".repeat(width.saturating_sub(text.width()) + GAP));
            column += width + GAP;
        }
        line.push('\n');
        line
    }
}

/// `text` in at most `width` columns, with `…` where something is missing.
fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub(1);
    let mut out = String::new();
    for c in text.chars() {
        let Some(rest) = left.checked_sub(c.width().unwrap_or(0)) else { break };
        left = rest;
        out.push(c);
    }
    out.push('…');
    out
}

/// `text` in pieces of at most `width` columns, broken at blanks where there are any; at least one piece.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        if used > 0 && used + 1 + word.width() <= width {
            if let Some(piece) = pieces.last_mut() {
                piece.push(' ');
            }
            used += 1;
        } else if used > 0 {
            pieces.push(String::new());
            used = 0;
        }
        for c in word.chars() {
            let columns = c.width().unwrap_or(0);
            if used > 0 && used + columns > width {
                pieces.push(String::new());
                used = 0;
            }
            if let Some(piece) = pieces.last_mut() {
                piece.push(c);
            }
            used += columns;
        }
    }
    pieces
}

/// The width of the terminal that stdout is, if it is one.
pub fn terminal_width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    // A serial console knows of no size: the one of old then.
    let columns = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
    Some(if columns == 0 { 80 } else { columns })
}

/// Text from outside on one line of a terminal: line ends become `; `, what could steer the terminal or turn the
/// direction of writing is escaped.
pub fn safe(text: &str) -> String {
    escaped(&text.trim_end().replace("\r\n", "\n").replace('\n', "; "), false)
}

/// The same for text of several lines, as in error messages that contain an element to paste.
pub fn safe_lines(text: &str) -> String {
    escaped(text.trim_end(), true)
}

fn escaped(text: &str, keep_newlines: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) && !(keep_newlines && c == '\n') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether a terminal would do something else than show it: control characters, and those that turn the direction of writing.
pub fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Seconds since 1970 as `2023-11-14 22:13:20 UTC`.
pub fn time(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The civil calendar by eras of 400 years that begin on 1 March, so that the leap day is a year's last.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(2, &[Fit::Keep, Fit::Shorten, Fit::Wrap]);
        table.row(["0000:41:00.0".into(), "a rather long name".into(), "words that can go on below".into()]);
        table.row(["mtty".into(), "".into(), "".into()]);
        table
    }

    #[test]
    fn all_is_there_without_a_terminal() {
        assert_eq!(table().render(None), "  0000:41:00.0  a rather long name  words that can go on below\n  mtty\n");
    }

    #[test]
    fn a_terminal_makes_it_fit() {
        let expected =
            "  0000:41:00.0  a rather lon…  words that can go on\n                               below\n  mtty\n";
        assert_eq!(table().render(Some(55)), expected);
        for width in 44..80 {
            for line in table().render(Some(width)).lines() {
                assert!(line.width() <= width, "{width}: {line:?}");
            }
        }
        // Hopeless widths still end, and show what they can.
        assert!(table().render(Some(0)).contains("mtty"));
    }

    #[test]
    fn wide_letters_count_twice() {
        assert_eq!(shortened("漢字漢字", 5), "漢字…");
        assert_eq!(shortened("漢字漢字", 6), "漢字…");
        assert_eq!(shortened("漢字漢字", 8), "漢字漢字");
        assert_eq!(wrap("漢字漢字 a", 4), ["漢字", "漢字", "a"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn nothing_from_outside_steers_the_terminal() {
        assert_eq!(safe("vm\u{1b}[2J\u{202e}\t1"), "vm\\u{1b}[2J\\u{202e}\\t1");
        assert_eq!(safe("low: 1\nhigh: 2\n"), "low: 1; high: 2");
        assert_eq!(safe_lines("add:\n  <a/>\u{7}\n"), "add:\n  <a/>\\u{7}");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(time(1_700_000_000), "2023-11-14 22:13:20 UTC");
        assert_eq!(time(1_735_689_599), "2024-12-31 23:59:59 UTC");
        assert!(time(u64::MAX).ends_with("UTC"));
    }
}
