//! Verifies that a partition's files form one unbroken chain.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::Error;
use super::footer::DataFile;
use super::live_files::{covering, effective};
use super::log::Log;

impl Log {
    /// Checks that the files follow each other without a gap or an overlap, that their footers agree with their names, and that
    /// the offsets in the newest file agree with its footer. Returns the live files.
    ///
    /// # Errors
    /// If a check fails or a file cannot be read.
    pub fn verify(&self) -> Result<Vec<DataFile>, Error> {
        let mark = self.mark()?;
        let all = self.all_files()?;
        let files = effective(all.clone());
        self.check_whole(&files, mark)?;
        if let Some(file) = all.iter().find(|file| covering(&files, file).is_empty()) {
            return Err(damaged(file, "it overlaps the files around it".to_owned()));
        }
        if let Some(newest) = files.last() {
            newest.read_through()?;
        }
        Ok(files)
    }
}

fn damaged(file: &DataFile, why: String) -> Error {
    Error::Damaged { path: file.path.clone(), why }
}

impl DataFile {
    /// Decodes every value of the file, and compares its offsets with its footer.
    pub(super) fn read_through(&self) -> Result<(), Error> {
        let broken = |e: &dyn std::fmt::Display| damaged(self, e.to_string());
        let reader = ParquetRecordBatchReaderBuilder::try_new(self.open()?).map_err(|e| broken(&e))?;
        let mask = ProjectionMask::all();
        let (mut rows, mut last) = (0, self.start - 1);
        for batch in reader.with_projection(mask).build().map_err(|e| broken(&e))? {
            let batch = batch.map_err(|e| broken(&e))?;
            rows += batch.num_rows() as u64;
            let offsets = batch.column_by_name("_offset").and_then(|column| column.as_primitive_opt::<Int64Type>());
            let offsets = offsets.ok_or_else(|| broken(&"it has no column _offset of whole numbers"))?;
            for &offset in offsets.values() {
                if offset <= last || offset >= self.next {
                    return Err(broken(&format!("the offset {offset} stands after {last}, before {}", self.next)));
                }
                last = offset;
            }
        }
        if rows != self.rows {
            return Err(broken(&format!("it holds {rows} rows, its footer says {}", self.rows)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::log::tests::records;

    #[test]
    fn an_unbroken_chain_verifies_and_faults_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(3).unwrap();
        for (start, first, next) in [(3, 5, 8), (8, 8, 10), (10, 10, 12)] {
            log.publish(&records(first..next), start, next).unwrap();
        }
        assert_eq!(log.verify().unwrap().len(), 3);
        let name = |start: i64| dir.path().join(format!("records/products/0/{start:020}.parquet"));
        let middle = std::fs::read(name(8)).unwrap();
        std::fs::remove_file(name(8)).unwrap();
        let error = log.verify().unwrap_err().to_string();
        assert!(error.contains("no file covers the offsets 8 to 9"), "{error}");
        std::fs::write(name(8), middle).unwrap();
        // A byte in the middle of the newest file's data; the footer is intact.
        let mut newest = std::fs::read(name(10)).unwrap();
        newest[8] ^= 0xff;
        std::fs::write(name(10), newest).unwrap();
        assert!(log.verify().unwrap_err().to_string().contains("00010.parquet is damaged"));
    }
}
