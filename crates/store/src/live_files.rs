//! Determines which of a partition's files are live.

use super::footer::DataFile;

/// Of files with the same start, the one that reaches furthest; files that start inside a covered range are skipped. So small
/// files that were replaced and wait for deletion are not read.
pub(super) fn effective(mut files: Vec<DataFile>) -> Vec<DataFile> {
    files.sort_by(|a, b| (a.start, b.next, &a.path).cmp(&(b.start, a.next, &b.path)));
    let mut covered = i64::MIN;
    files.retain(|file| {
        let counts = file.start >= covered;
        if counts {
            covered = file.next;
        }
        counts
    });
    files
}

/// The live files (sorted by start) that cover the whole range of `other` without a gap; empty if they do not.
pub(super) fn covering<'f>(files: &'f [DataFile], other: &DataFile) -> &'f [DataFile] {
    let after = files.partition_point(|file| file.start <= other.start);
    let Some(first) = after.checked_sub(1) else { return &[] };
    let mut end = files[first].start;
    for (i, file) in files.iter().enumerate().skip(first) {
        if file.start != end {
            return &[];
        }
        end = file.next;
        if other.next <= end {
            return &files[first..=i];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(start: i64, next: i64) -> DataFile {
        DataFile { start, next, ..DataFile::default() }
    }

    #[test]
    fn the_readers_rule() {
        let ranges = |files: Vec<DataFile>| files.iter().map(|f| (f.start, f.next)).collect::<Vec<_>>();
        assert_eq!(ranges(effective(vec![file(5, 9), file(0, 5)])), [(0, 5), (5, 9)]);
        let compacted = vec![file(0, 5), file(5, 9), file(0, 9), file(9, 12)];
        assert_eq!(ranges(effective(compacted)), [(0, 9), (9, 12)]);
        let twice = vec![file(0, 5), file(5, 9), file(0, 9), file(9, 12), file(12, 20), file(9, 20), file(0, 20)];
        assert_eq!(ranges(effective(twice)), [(0, 20)]);
    }

    #[test]
    fn several_files_may_cover_one() {
        let files = [file(0, 5), file(5, 9), file(9, 12), file(13, 20)];
        let covered = |other: DataFile| covering(&files, &other).iter().map(|f| f.start).collect::<Vec<_>>();
        assert_eq!(covered(file(5, 9)), [5]);
        assert_eq!(covered(file(3, 10)), [0, 5, 9]);
        assert!(covered(file(9, 14)).is_empty(), "offset 12 is nowhere");
        assert!(covered(file(13, 21)).is_empty());
    }
}
