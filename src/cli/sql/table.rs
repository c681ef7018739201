//! Prints rows as a table with borders.
//!
//! Input: cells as text. Output: lines, fitted to the terminal's width if there is a terminal.

use std::io::{self, Write};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Number of rows that determine the column widths; wider cells in later rows overflow.
const MEASURED: usize = 10_000;
/// Columns are not narrowed below this width.
const NARROWEST: usize = 8;

/// A column of the table.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    /// True for right-aligned columns (numbers).
    pub right: bool,
}

/// A table that is being written.
pub struct TextTable {
    columns: Vec<Column>,
    /// Rows buffered until the widths are known.
    waiting: Vec<Vec<String>>,
    widths: Option<Vec<usize>>,
    /// Terminal width in columns.
    fit: Option<usize>,
}

impl TextTable {
    pub fn new(columns: Vec<Column>, fit: Option<usize>) -> Self {
        Self { columns, waiting: Vec::new(), widths: None, fit }
    }

    pub fn row(&mut self, cells: Vec<String>, out: &mut dyn Write) -> io::Result<()> {
        if self.widths.is_some() {
            return self.write_row(&cells, out);
        }
        self.waiting.push(cells);
        if self.waiting.len() >= MEASURED { self.start(out) } else { Ok(()) }
    }

    /// Writes the buffered rows and the last line; returns the number of columns that did not fit.
    pub fn end(mut self, out: &mut dyn Write) -> io::Result<usize> {
        if self.widths.is_none() {
            self.start(out)?;
        }
        self.rule(['└', '┴', '┘'], out)?;
        Ok(self.columns.len() - self.shown())
    }

    fn start(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let mut widths: Vec<usize> = self.columns.iter().map(|column| column.name.width()).collect();
        for row in &self.waiting {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        if let Some(fit) = self.fit {
            squeeze(&mut widths, fit);
        }
        self.widths = Some(widths);
        self.rule(['┌', '┬', '┐'], out)?;
        let names: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        self.write_row(&names, out)?;
        self.rule(['├', '┼', '┤'], out)?;
        for row in std::mem::take(&mut self.waiting) {
            self.write_row(&row, out)?;
        }
        Ok(())
    }

    fn shown(&self) -> usize {
        self.widths.as_ref().map_or(0, Vec::len)
    }

    fn rule(&self, [left, middle, right]: [char; 3], out: &mut dyn Write) -> io::Result<()> {
        let dashes: Vec<String> = self.widths.iter().flatten().map(|width| "─".repeat(width + 2)).collect();
        writeln!(out, "{left}{}{right}", dashes.join(&middle.to_string()))
    }

    fn write_row(&self, cells: &[String], out: &mut dyn Write) -> io::Result<()> {
        for ((cell, width), column) in cells.iter().zip(self.widths.iter().flatten()).zip(&self.columns) {
            let cell = if self.fit.is_some() { cut(cell, *width) } else { cell.clone() };
            let pad = " ".repeat(width.saturating_sub(cell.width()));
            if column.right { write!(out, "│ {pad}{cell} ")? } else { write!(out, "│ {cell}{pad} ")? }
        }
        writeln!(out, "│")
    }
}

/// Narrows the widest columns until the table fits; drops the last columns if that is not enough.
fn squeeze(widths: &mut Vec<usize>, fit: usize) {
    let total = |widths: &[usize]| widths.iter().map(|width| width + 3).sum::<usize>() + 1;
    while total(widths) > fit {
        let over = total(widths) - fit;
        let widest = widths.iter().copied().max().unwrap_or(0);
        if widest > NARROWEST {
            // All columns of the greatest width shrink together, at most to the next smaller width.
            let next = widths.iter().copied().filter(|width| *width < widest).max().unwrap_or(0).max(NARROWEST);
            let many = widths.iter().filter(|width| **width == widest).count();
            let by = over.div_ceil(many).min(widest - next).max(1);
            for width in widths.iter_mut().filter(|width| **width == widest) {
                *width -= by;
            }
        } else if widths.len() > 1 {
            widths.pop();
        } else {
            break;
        }
    }
}

/// Truncates a text to a width; `…` marks the truncation.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub(1);
    let kept: String = text
        .chars()
        .take_while(|c| {
            let wide = c.width().unwrap_or(0);
            let fits = wide <= left;
            left = left.saturating_sub(wide);
            fits
        })
        .collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(names: &[&str], rows: &[&[&str]], fit: Option<usize>) -> String {
        let columns = names.iter().map(|name| Column { name: (*name).to_owned(), right: *name == "n" }).collect();
        let (mut grid, mut out) = (TextTable::new(columns, fit), Vec::new());
        for row in rows {
            grid.row(row.iter().map(|cell| (*cell).to_owned()).collect(), &mut out).unwrap();
        }
        grid.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_line_up() {
        let expected = "\
┌──────┬─────┐
│ a    │   n │
├──────┼─────┤
│ x    │   1 │
│ 電話 │ 200 │
└──────┴─────┘
";
        assert_eq!(grid(&["a", "n"], &[&["x", "1"], &["電話", "200"]], None), expected);
    }

    #[test]
    fn a_terminal_is_kept_to() {
        let long = "x".repeat(100);
        let wide = grid(&["a", "b", "c"], &[&[&long, "short", &long]], Some(60));
        assert!(wide.lines().all(|line| line.width() <= 60), "{wide}");
        assert!(wide.contains("│ short │"), "{wide}");
        let names: Vec<&str> = vec!["column"; 30];
        let many = grid(&names, &[], Some(60));
        assert!(many.lines().all(|line| line.width() <= 60), "{many}");
    }
}
