//! File names in a partition's directory.

/// The name of a file of records. Names sort by the start of their ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    pub start: i64,
    /// End of the range, only in names of large files that replace small ones.
    pub next: Option<i64>,
}

impl Name {
    /// The name of a file published by a writer.
    pub fn small(start: i64) -> Self {
        Self { start, next: None }
    }

    /// The name of a file that covers others.
    pub fn large(start: i64, next: i64) -> Self {
        Self { start, next: Some(next) }
    }

    /// Parses a file name; `None` if it is not the name of a file of records.
    pub fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(".parquet")?;
        let digits = |text: &str| {
            // `parse` takes a sign.
            let only = text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit());
            only.then(|| text.parse::<i64>().ok()).flatten()
        };
        match stem.split_once('-') {
            Some((start, next)) => Some(Self::large(digits(start)?, digits(next)?)),
            None => Some(Self::small(digits(stem)?)),
        }
    }

    /// Whether this is the name of a large file whose range contains the offset.
    pub fn covers(&self, offset: i64) -> bool {
        self.next.is_some_and(|next| self.start <= offset && offset < next)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.next {
            Some(next) => write!(f, "{:020}-{next:020}.parquet", self.start),
            None => write!(f, "{:020}.parquet", self.start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_record_files_parse() {
        for (text, name) in [
            ("00000000000000000042.parquet", Name::small(42)),
            ("00000000000000000000-00000000000000000042.parquet", Name::large(0, 42)),
        ] {
            assert_eq!(Name::parse(text), Some(name));
            assert_eq!(name.to_string(), text);
        }
        for other in [
            "42.parquet",
            "_start",
            "00000000000000000042.tmp",
            "0000000000000000004x.parquet",
            "+0000000000000000042.parquet",
        ] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_large_file_covers_its_range() {
        let large = Name::large(10, 20);
        assert_eq!([9, 10, 19, 20].map(|offset| large.covers(offset)), [false, true, true, false]);
        assert!(!Name::small(10).covers(10));
    }
}
