//! The dialect of a CSV file: delimiter, decimal mark, and lines before the header.

use std::fmt;
use std::path::Path;

use csv::StringRecord;
use encoding_rs::{Encoding, UTF_8};

use super::{Fault, Options};
use crate::file_format::{self, Format};
use crate::value::number::unit_of;
use crate::value::trimmed;

/// Whether the first line has the names of the columns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Header {
    /// It does, unless it has numbers that are no plausible names, which is an error
    #[default]
    Auto,
    /// It does
    Yes,
    /// It has values; the columns are column_1, column_2, …
    No,
}

/// How a file is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Dialect {
    pub delimiter: u8,
    /// `.` or `,`.
    pub decimal: char,
    pub encoding: &'static Encoding,
    /// `gzip` or `zstd`.
    pub compression: Option<&'static str>,
    /// Number of lines before the header.
    pub skip: u64,
    pub header: Header,
    /// Whether the rows come from the command line's user, who can change flags.
    pub advice: bool,
}

impl Default for Dialect {
    fn default() -> Self {
        Self {
            delimiter: b',',
            decimal: '.',
            encoding: UTF_8,
            compression: None,
            skip: 0,
            header: Header::Auto,
            advice: true,
        }
    }
}

/// Delimiters that are detected.
const DELIMITERS: [(u8, &str); 4] = [(b',', "comma"), (b';', "semicolon"), (b'\t', "tab"), (b'|', "pipe")];
/// Number of records inspected.
const RECORDS: usize = 200;

impl Dialect {
    /// Name of the encoding as users know it: `cp1252` instead of WHATWG's `windows-1252`.
    fn encoding_name(&self) -> String {
        let name = self.encoding.name();
        name.strip_prefix("windows-").map_or_else(|| name.to_owned(), |page| format!("cp{page}"))
    }

    /// Whether anything was detected or set that a user might not expect.
    pub fn is_plain(&self, format: Format) -> bool {
        let text = self.encoding == UTF_8 && self.compression.is_none();
        match format {
            Format::Csv => text && self.delimiter == b',' && self.decimal == '.' && self.skip == 0,
            Format::Tsv => text && self.delimiter == b'\t' && self.decimal == '.' && self.skip == 0,
            _ => text,
        }
    }

    /// The dialect in one line: `semicolon-separated, cp1252, decimal comma`.
    pub fn describe(&self, format: Format) -> String {
        let mut parts = Vec::new();
        match format {
            Format::Csv | Format::Tsv => {
                parts.push(match DELIMITERS.iter().find(|(byte, _)| *byte == self.delimiter) {
                    Some((_, name)) => format!("{name}-separated"),
                    None => format!("separated by {:?}", char::from(self.delimiter)),
                })
            }
            format => parts.push(file_format::value_name(&format)),
        }
        parts.push(self.encoding_name());
        if self.decimal == ',' {
            parts.push("decimal comma".to_owned());
        }
        match self.skip {
            0 => {}
            1 => parts.push("1 line before the header".to_owned()),
            n => parts.push(format!("{n} lines before the header")),
        }
        parts.extend(self.compression.map(str::to_owned));
        parts.join(", ")
    }
}

/// The text of a number with a decimal point, as Rust and SQL read it, of a number with the decimal mark `mark`. With a comma, a
/// point is accepted only between groups of three digits. Text that is no number is returned unchanged.
pub fn decimal_point(text: &str, mark: char) -> std::borrow::Cow<'_, str> {
    if mark == '.' || !text.contains([',', '.']) {
        return text.into();
    }
    let trimmed = text.trim();
    let (whole, fraction) = trimmed.split_once(',').unwrap_or((trimmed, ""));
    let unsigned = whole.trim_start_matches(['-', '+']);
    let mut groups = unsigned.split('.');
    let first = groups.next().unwrap_or_default();
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let grouped = !unsigned.contains('.') || ((1..=3).contains(&first.len()) && groups.all(|group| group.len() == 3));
    let exponent = |c: char| matches!(c, 'e' | 'E' | '-' | '+') || c.is_ascii_digit();
    if grouped && digits(&unsigned.replace('.', "")) && fraction.chars().all(exponent) {
        let point = if trimmed.contains(',') { "." } else { "" };
        return format!("{}{point}{fraction}", whole.replace('.', "")).into();
    }
    // A point that is no group: no number in this dialect, and not one with a decimal point either.
    if trimmed.parse::<f64>().is_ok() { format!("{text} (decimal comma)").into() } else { text.into() }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&file_format::value_name(self))
    }
}

/// Detects what `options` do not set, from the first lines.
///
/// # Errors
/// If the delimiter is ambiguous.
pub(super) fn detect(sample: &str, format: Format, name: &Path, options: &Options) -> Result<Dialect, Fault> {
    // Excel's directive.
    let first = sample.lines().next().unwrap_or_default();
    let directive = first.trim().strip_prefix("sep=").and_then(|rest| match rest.as_bytes() {
        [delimiter] => Some(*delimiter),
        [] => Some(b'\t'),
        _ => None,
    });
    let by_name = || matches!(file_format::of(name), Some(Format::Tsv)).then_some(b'\t');
    let tabs = (format == Format::Tsv).then_some(b'\t');
    let skip = options.skip.or(directive.map(|_| 1));
    let body = sample.split_inclusive('\n').skip(skip.unwrap_or(0) as usize).collect::<String>();
    let delimiter = options.delimiter.or(directive).or(tabs).or_else(by_name).map_or_else(|| sniff(&body), Ok)?;
    let records = records(&body, delimiter);
    Ok(Dialect {
        delimiter,
        decimal: if has_decimal_comma(&records) { ',' } else { '.' },
        skip: options
            .skip
            .unwrap_or_else(|| u64::from(directive.is_some()) + title_lines(&body, &records, options.header)),
        header: options.header,
        ..Dialect::default()
    })
}

/// The delimiter whose records are the most uniform: the share of records with as many fields as the header, then the fewest
/// lines before the header, then the number of fields. The header is the first record with more than one value.
///
/// # Errors
/// If two delimiters fit equally well.
fn sniff(sample: &str) -> Result<u8, Fault> {
    let score = |delimiter: u8| {
        let records = records(sample, delimiter);
        let header =
            records.iter().position(|record| record.iter().filter(|field| !field.trim().is_empty()).count() > 1)?;
        let (columns, rows) = (records[header].len(), &records[header + 1..]);
        let uniform = rows.iter().filter(|record| record.len() == columns).count();
        Some(((uniform * 1000).checked_div(rows.len()).unwrap_or(1000), std::cmp::Reverse(header), columns))
    };
    let mut scores: Vec<_> = DELIMITERS.iter().filter_map(|(byte, name)| Some((score(*byte)?, *byte, *name))).collect();
    scores.sort_by_key(|(score, ..)| std::cmp::Reverse(*score));
    match scores[..] {
        [] => Ok(b','),
        [(best, _, one), (second, _, other), ..] if best == second => {
            let what = format!("the fields may be {one}-separated or {other}-separated");
            Err(Fault::whole(what).with_remedy("give --delimiter"))
        }
        [(_, best, _), ..] => Ok(best),
    }
}

fn records(sample: &str, delimiter: u8) -> Vec<StringRecord> {
    let mut builder = csv::ReaderBuilder::new();
    let mut reader = builder.has_headers(false).flexible(true).delimiter(delimiter).from_reader(sample.as_bytes());
    reader.records().take(RECORDS).flatten().collect()
}

/// Number of lines before the header: comments, and lines with at most one value, before a table whose rows all have the same number of
/// values, at least two. Lines that begin with `#` are comments unless one may be the header, as in `#id,name`: see [`is_comment`].
fn title_lines(sample: &str, records: &[StringRecord], header: Header) -> u64 {
    let values = |record: &StringRecord| record.iter().filter(|field| !field.trim().is_empty()).count();
    let is_marked = |record: &StringRecord| record.get(0).is_some_and(|field| field.starts_with('#'));
    // Without a header, a line that begins with `#` may be a row.
    let unmarked = records.iter().position(|record| values(record) > 1 && !is_marked(record));
    let table = unmarked.filter(|_| header != Header::No).map_or(&[][..], |first| &records[first..]);
    let is_title = |record: &&StringRecord| values(record) <= 1 || is_marked(record) && is_comment(record, table);
    let titles = records.iter().take_while(is_title).count();
    let Some(header) = records.get(titles).filter(|_| titles > 0 && records.len() > titles + 1) else { return 0 };
    let uniform = records[titles..].iter().all(|record| record.len() == header.len());
    if !(uniform && values(header) >= 2 && values(header) + 1 >= header.len()) {
        return 0;
    }
    // The csv crate skips blank lines when it reads the record behind them.
    let start = header.position().map_or(0, |position| position.byte() as usize);
    let (before, rest) = sample.split_at_checked(start).unwrap_or_default();
    let blank = rest.lines().take_while(|line| line.trim().is_empty()).count();
    (before.matches('\n').count() + blank) as u64
}

/// Whether a record that begins with `#` is no header of the rows behind it: it has another number of values, or the first row is one,
/// names without a number above rows with numbers.
fn is_comment(record: &StringRecord, rows: &[StringRecord]) -> bool {
    let numbers = |row: &StringRecord| row.iter().filter(|field| trimmed(field).parse::<f64>().is_ok()).count();
    match rows {
        [] => false,
        [first, ..] if first.len() != record.len() => true,
        [first, others @ ..] => numbers(first) == 0 && others.iter().any(|row| numbers(row) > 0),
    }
}

/// Whether numbers have a decimal comma: some do, and none has a decimal point. `1,500` may be either and does not count. A unit beside
/// a number, as in `9,50 €`, is left out, as by `init`.
fn has_decimal_comma(records: &[StringRecord]) -> bool {
    let is_decimal = |text: &str, mark: char, group: char| {
        let Some((whole, fraction)) = text.trim_start_matches(['-', '+']).split_once(mark) else { return false };
        let grouped = whole.contains(group);
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits(&whole.replace(group, "")) && digits(fraction) && (grouped || fraction.len() != 3)
    };
    let bare = |field: &str| {
        let text = trimmed(field);
        let unit = unit_of(text).unwrap_or_default();
        let text = text.strip_suffix(unit).or_else(|| text.strip_prefix(unit)).unwrap_or(text);
        trimmed(text).to_owned()
    };
    let any = |mark, group| records.iter().skip(1).flatten().any(|field| is_decimal(&bare(field), mark, group));
    any(',', '.') && !any('.', ',')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(sample: &str) -> String {
        let dialect = detect(sample, Format::Csv, Path::new("f.csv"), &Options::default());
        dialect.map_or_else(|fault| fault.to_string(), |dialect| dialect.describe(Format::Csv))
    }

    #[test]
    fn delimiters_marks_and_titles_are_detected() {
        assert_eq!(detected("a,b\n1,2\n"), "comma-separated, UTF-8");
        assert_eq!(detected("name;price\nTea;2,2\nCafé;1.024,5\n"), "semicolon-separated, UTF-8, decimal comma");
        assert_eq!(detected("a|b|c\n1|2|3\n4|5|6\n"), "pipe-separated, UTF-8");
        assert_eq!(detected("a\tb\n1\t2\n"), "tab-separated, UTF-8");
        assert_eq!(detected("sep=;\na;b\n1;2\n"), "semicolon-separated, UTF-8, 1 line before the header");
        assert_eq!(
            detected("Sales of May\n\na,b,c\n1,2,3\n4,5,6\n"),
            "comma-separated, UTF-8, 2 lines before the header"
        );
        assert_eq!(detected("Sales,,\n,,\na,b,c\n1,2,3\n"), "comma-separated, UTF-8, 2 lines before the header");
        let comments = "comma-separated, UTF-8, 2 lines before the header";
        assert_eq!(detected("# Sales, May\n# from a, b, c and d\na,b,c\n1,2,3\n4,5,6\n"), comments);
        assert_eq!(detected("# Sales, May\na,b\n1,2\n4,5\n"), "comma-separated, UTF-8, 1 line before the header");
        assert_eq!(detected("sep=,\n# c\nid,name\n1,x\n2,y\n"), "comma-separated, UTF-8, 2 lines before the header");
        for header in ["#id,name\n1,a\n2,b\n", "#a,b\nx,y\nz,w\n", "#tag,lang\n#fun,en\n#sun,de\nother,fr\n"] {
            assert_eq!(detected(header), "comma-separated, UTF-8", "the header begins with #");
        }
        assert_eq!(
            detected("## meta, data, 1\n#id,name\n1,a\n2,b\n"),
            "comma-separated, UTF-8, 1 line before the header"
        );
        assert_eq!(detected("a;b,c\n1;2,3\n"), "the fields may be comma-separated or semicolon-separated");
        assert_eq!(detected("a,b;c,d\n1,2,3\n4,5,6\n"), "comma-separated, UTF-8");
        assert_eq!(
            detected("id;when;x\n1;2024-01-01, 10:00;1,5\n2;2024-01-02, 10:00;1,7\n"),
            "semicolon-separated, UTF-8, decimal comma"
        );
        assert_eq!(detected("text,n\n\"a; b\",1\n\"c; d\",2\n"), "comma-separated, UTF-8");
        assert_eq!(detected("text\none\ntwo\n"), "comma-separated, UTF-8");
        assert_eq!(detected("id,price\n0,\"1,000\"\n1,\"1,001\"\n"), "comma-separated, UTF-8", "1,000 may be either");
        assert_eq!(detected("id;n\n1;1,5\n2;1.5\n"), "semicolon-separated, UTF-8", "contradictory");
    }

    #[test]
    fn a_decimal_comma_becomes_a_point() {
        for (text, number) in [
            ("1,5", "1.5"),
            (" -3,25 ", "-3.25"),
            ("1.234,5", "1234.5"),
            ("1.234", "1234"),
            ("12", "12"),
            ("1,5e3", "1.5e3"),
            ("x,y", "x,y"),
            ("", ""),
        ] {
            assert_eq!(decimal_point(text, ','), number, "{text}");
        }
        for text in ["1.5", "1.23,5", "1,234.5"] {
            assert!(decimal_point(text, ',').parse::<f64>().is_err(), "{text}");
        }
        assert_eq!(decimal_point("1,5", '.'), "1,5");
    }
}
