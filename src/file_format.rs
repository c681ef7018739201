//! File formats by the ending of a file's name: the one list for files that are read and files that are written.
//!
//! Input: a path, and the format that `--format` gives, if any. Output: the format, or why the two contradict each other.

use std::path::Path;

use clap::ValueEnum;

/// Endings of file names and the formats that they stand for, named as `--format` names them. The first is the default; the
/// others are used under that name as well, and do not contradict it. Formats that nothing here writes are listed too, so that
/// no file gets the name of a format that it does not have.
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
    // Named for the streaming format here; other programs name the file format so.
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

/// The formats that the ending of a file's name stands for, the default first; `None` if there is no ending or an unknown one.
fn formats_of(path: &Path) -> Option<&'static [&'static str]> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    ENDINGS.iter().find(|(known, _)| *known == ending).map(|(_, formats)| *formats)
}

/// The name of the format that the ending of a file's name stands for; `None` if there is no ending or an unknown one.
pub fn name_of(path: &Path) -> Option<&'static str> {
    formats_of(path).map(|formats| formats[0])
}

/// The format of a file that is read, out of those that its reader knows; `None` if the name does not say.
pub fn of<F: ValueEnum>(path: &Path) -> Option<F> {
    F::from_str(name_of(path)?, true).ok()
}

/// The format of a file that is written: `given` if there is one, else the one that its ending stands for, else `None`.
///
/// # Errors
/// The ending stands for another format than `given`, or for one that is none of `F`.
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

/// Checks the name of a file that is written in one format only.
///
/// # Errors
/// The ending stands for another format.
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

/// A format as `--format` names it.
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
