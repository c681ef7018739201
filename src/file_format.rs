//! File formats by file name extension, for input and output files.
//!
//! Input: a path and the value of `--format`, if given. Output: the format, or an error if the two contradict each other.

use std::path::Path;

use clap::ValueEnum;

/// How rows are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Csv,
    /// Separated by tabs, else as CSV.
    Tsv,
    Json,
    Ndjson,
    /// Arrow's streaming format
    Arrow,
    /// Arrow's file format, which is Feather version 2
    Feather,
    Parquet,
}

/// Extensions and their formats, named as in `--format`. The first format is the default; the others are also in use under that
/// extension and do not contradict it. Formats that this program cannot write are listed too, so that an output file never gets
/// the extension of another format.
const ENDINGS: [(&str, &[&str]); 31] = [
    ("csv", &["csv"]),
    ("tsv", &["tsv"]),
    ("tab", &["tsv"]),
    ("json", &["json", "ndjson"]),
    ("ndjson", &["ndjson"]),
    ("jsonl", &["ndjson"]),
    ("md", &["markdown"]),
    ("markdown", &["markdown"]),
    ("parquet", &["parquet"]),
    ("pq", &["parquet"]),
    // `.arrow` means the streaming format here; other programs use it for the file format.
    ("arrow", &["arrow", "feather"]),
    ("arrows", &["arrow"]),
    ("feather", &["feather"]),
    ("ipc", &["feather", "arrow"]),
    ("svg", &["svg"]),
    ("png", &["png"]),
    ("jpg", &["jpeg"]),
    ("jpeg", &["jpeg"]),
    ("pdf", &["pdf"]),
    ("html", &["html"]),
    ("xml", &["xml"]),
    ("xls", &["xls"]),
    ("xlsx", &["xlsx"]),
    ("ods", &["ods"]),
    ("avro", &["avro"]),
    ("orc", &["orc"]),
    ("gz", &["gzip"]),
    ("bz2", &["bzip2"]),
    ("xz", &["xz"]),
    ("zst", &["zstd"]),
    ("zip", &["zip"]),
];

/// Formats of a path's extension, the default first; `None` without an extension or for an unknown one.
fn formats_of(path: &Path) -> Option<&'static [&'static str]> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    ENDINGS.iter().find(|(known, _)| *known == ending).map(|(_, formats)| *formats)
}

/// Default format name of a path's extension; `None` without an extension or for an unknown one.
pub fn name_of(path: &Path) -> Option<&'static str> {
    formats_of(path).map(|formats| formats[0])
}

/// Format of an input file among those that its reader supports; `None` if the extension does not determine it.
pub fn of<F: ValueEnum>(path: &Path) -> Option<F> {
    F::from_str(name_of(path)?, true).ok()
}

/// Format of an output file: `given` if there is one, else the default of the extension, else `None`.
///
/// # Errors
/// If the extension stands for another format than `given`, or for one that `F` lacks.
pub fn for_output<F: ValueEnum>(path: &Path, given: Option<F>) -> Result<Option<F>, String> {
    let Some(formats) = formats_of(path) else { return Ok(given) };
    if let Some(given) = given {
        let name = value_name(&given);
        return match formats.contains(&name.as_str()) {
            true => Ok(Some(given)),
            false => Err(format!(
                "{} is a name for {}, and the format is {name}; change the name or the format",
                path.display(),
                formats[0]
            )),
        };
    }
    F::from_str(formats[0], true).map(Some).map_err(|_| {
        let written: Vec<String> = F::value_variants().iter().map(value_name).collect();
        let written = written.join(", ");
        format!(
            "{} is a name for {}, which is not written here; choose a name for {written}",
            path.display(),
            formats[0]
        )
    })
}

/// Checks the extension of an output file that has only one possible format.
///
/// # Errors
/// If the extension stands for another format.
pub fn check_output(path: &Path, format: &str) -> Result<(), String> {
    match formats_of(path) {
        Some(formats) if !formats.contains(&format) => Err(format!(
            "{} is a name for {}, and {format} is written; choose a name that ends in .{format}",
            path.display(),
            formats[0]
        )),
        _ => Ok(()),
    }
}

/// Name of a format as in `--format`.
pub fn value_name<F: ValueEnum>(format: &F) -> String {
    format.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
    enum Some2 {
        Csv,
        Ndjson,
    }

    fn output(name: &str, given: Option<Some2>) -> Result<Option<Some2>, String> {
        for_output(Path::new(name), given)
    }

    #[test]
    fn the_ending_decides_where_no_format_is_given() {
        for name in ["x.csv", "a/b.c/X.CSV", "x.tar.csv"] {
            assert_eq!(output(name, None), Ok(Some(Some2::Csv)), "{name}");
        }
        assert_eq!(output("x.jsonl", None), Ok(Some(Some2::Ndjson)));
        for unknown in ["x", ".csv", "csv", "x.txt", "x.csv~", "/dev/stdout", "x."] {
            assert_eq!(output(unknown, None), Ok(None), "{unknown}");
            assert_eq!(output(unknown, Some(Some2::Ndjson)), Ok(Some(Some2::Ndjson)), "{unknown}");
        }
        assert_eq!(of::<Some2>(Path::new("x.csv")), Some(Some2::Csv));
        assert_eq!(of::<Some2>(Path::new("x.parquet")), None, "its reader may know it by its first bytes");
    }

    #[test]
    fn a_contradiction_names_both() {
        let error = output("x.parquet", Some(Some2::Csv)).unwrap_err();
        assert!(error.contains("x.parquet is a name for parquet, and the format is csv"), "{error}");
        let error = output("x.csv.gz", Some(Some2::Csv)).unwrap_err();
        assert!(error.contains("gzip"), "{error}");
        let error = output("x.parquet", None).unwrap_err();
        assert!(error.contains("parquet, which is not written here; choose a name for csv, ndjson"), "{error}");
        assert_eq!(output("x.json", Some(Some2::Ndjson)), Ok(Some(Some2::Ndjson)), "other programs name it so");
        assert_eq!(check_output(Path::new("x.svg"), "svg"), Ok(()));
        assert_eq!(check_output(Path::new("x"), "svg"), Ok(()));
        assert!(check_output(Path::new("x.png"), "svg").unwrap_err().contains("ends in .svg"));
    }
}
