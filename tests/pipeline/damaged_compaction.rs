//! A larger file that is damaged while the small files that it replaced are still there.

use std::fs;

use super::damaged_store::{Fed, ROWS};
use crate::common::files;

/// The small files are the only good copy of their records: compaction deletes them only after it has read the larger one.
#[test]
fn small_files_stay_while_the_larger_one_is_damaged() {
    let fed = Fed::new();
    let (place, store) = (&fed.place, fed.copy());
    let parquet = || -> Vec<_> {
        let all = files(&store.join("records/products/0"));
        all.into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "parquet")).collect()
    };
    place.ok(&["compact"]);
    let before = parquet();
    let large = before.iter().find(|file| file.to_string_lossy().contains('-')).unwrap();
    assert!(before.len() > 2, "{before:?}");
    let whole = fs::read(large).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 4] ^= 1;
    for content in [&flipped[..], &whole[..whole.len() / 2]] {
        fs::write(large, content).unwrap();
        let said = place.fails(1, &["compact", "--grace", "0"]);
        assert!(said.contains("is damaged") && said.contains(large.file_name().unwrap().to_str().unwrap()), "{said}");
        assert_eq!(parquet(), before);
        let doctor = place.run(&["doctor", "--deep", "--bind", "127.0.0.1:0"]);
        assert!(doctor.code == Some(1) && doctor.stdout.contains("is damaged"), "{}", doctor.stdout);
    }
    // The advice: the larger file is moved away.
    fs::remove_file(large).unwrap();
    assert_eq!(fed.records("store"), (ROWS, ROWS));
    assert_eq!(fed.faults(), "");
    place.ok(&["compact"]);
    place.ok(&["compact", "--grace", "0"]);
    assert_eq!((fed.records("store"), parquet().len()), ((ROWS, ROWS), 1));
}
