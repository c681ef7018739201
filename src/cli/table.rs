//! Formats rows of text as aligned columns.

use crate::printable::printable;

/// The lines of a table, with the header first. Columns that contain only numbers are right-aligned.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    // Names and values come from untrusted files.
    let plain = |cell: &str| printable(cell).into_owned();
    let header: Vec<String> = header.iter().map(|cell| plain(cell)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let number = |text: &str| text.is_empty() || text.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit());
    let widths: Vec<usize> = (0..header.len())
        .map(|i| rows.iter().map(|row| row[i].chars().count()).chain([header[i].chars().count()]).max().unwrap_or(0))
        .collect();
    let right: Vec<bool> = (0..header.len()).map(|i| rows.iter().all(|row| number(&row[i]))).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells
            .enumerate()
            .map(|(i, cell)| {
                let pad = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
                if right[i] { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
            })
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    let mut out = line(&mut header.iter().map(String::as_str));
    for row in &rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

/// Formats a number with about seven digits.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        1e-3..1e9 => {
            let digits = (6 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
            let text = format!("{value:.digits$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
        _ => format!("{value:.6e}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "1".into()], vec!["bcd".into(), "200".into()]];
        assert_eq!(super::render(&["name", "n"], &rows), "name    n\na       1\nbcd   200\n");
        assert_eq!(super::render(&["a\nb"], &[vec!["\u{1b}[31m".into()]]), "a\\nb\n\\u{1b}[31m\n");
    }
}
