//! The contract of [`super::Backend`]: checks that hold for every implementation.
//!
//! [`test_contract`] makes a test of each check. Each gets the same store as seen by two processes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parquet::file::reader::{ChunkReader as _, Length as _};

use super::*;
use crate::log::tests::records;
use crate::place::Place;

/// A store as seen by two processes.
pub struct Two {
    pub one: Place,
    pub other: Place,
    pub root: PathBuf,
}

/// Makes a test of each check, on a new store from this function, which also returns what must live as long as the test.
macro_rules! test_contract {
    ($new:expr) => {
        test_contract!($new;
            a_name_is_taken_once, one_of_many_writers_takes_a_name, published_files_are_read_back,
            temporary_files_are_published_and_stay, staged_records_are_published_once, files_are_listed,
            a_file_is_replaced_if_unchanged, replacements_are_not_lost, files_are_deleted, files_are_set_aside,
            missing_files_are_not_found, ranges_are_read, many_threads_read_one_file, stamps_and_times_follow_changes,
            notes_replace_each_other,
            probes_leave_nothing, lock_files_exclude_each_other, a_lock_is_waited_for, directories_are_locked);
    };
    ($new:expr; $($check:ident),*) => {
        $(
            #[test]
            fn $check() {
                let (two, _alive) = $new();
                two.one.make_tmp().unwrap();
                two.one.make_dir(&two.root.join("dir")).unwrap();
                $crate::backend::contract::$check(&two);
            }
        )*
    };
}
pub(crate) use test_contract;

impl Two {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join("dir").join(name)
    }

    /// The names in the directory, once a list shows this number of them: lists may lag.
    fn names(&self, number: usize) -> Vec<String> {
        for _ in 0..20 {
            let mut names: Vec<String> = list(&self.other, &self.root.join("dir"));
            if names.len() == number {
                names.sort();
                return names;
            }
        }
        panic!("the list never has {number} names");
    }
}

fn list(place: &Place, dir: &Path) -> Vec<String> {
    place.list(dir).unwrap().into_iter().map(|entry| entry.name).collect()
}

pub fn a_name_is_taken_once(two: &Two) {
    let path = two.path("name");
    assert!(two.one.publish(b"first", &path).unwrap().is_some());
    for place in [&two.one, &two.other] {
        assert_eq!(place.publish(b"second", &path).unwrap(), None);
        assert_eq!(place.read(&path).unwrap(), b"first");
    }
}

pub fn one_of_many_writers_takes_a_name(two: &Two) {
    for name in ["a", "b", "c"] {
        let path = two.path(name);
        let taken: Vec<Option<String>> = thread::scope(|scope| {
            let write = |i: usize| {
                let (place, path) = (if i.is_multiple_of(2) { &two.one } else { &two.other }, &path);
                let text = format!("writer {i}");
                scope.spawn(move || place.publish(text.as_bytes(), path).unwrap().map(|_| text))
            };
            let writers: Vec<_> = (0..8).map(write).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let winners: Vec<&String> = taken.iter().flatten().collect();
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(two.one.read(&path).unwrap(), winners[0].as_bytes());
    }
}

pub fn published_files_are_read_back(two: &Two) {
    let large: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    for (name, bytes) in [("empty", &[][..]), ("small", b"a"), ("large", &large)] {
        let revision = two.one.publish(bytes, &two.path(name)).unwrap().unwrap();
        assert_eq!(two.other.read(&two.path(name)).unwrap(), bytes);
        let read = two.other.read_revision(&two.path(name)).unwrap();
        assert_eq!(read, (Some(bytes.to_vec()), revision));
    }
}

pub fn temporary_files_are_published_and_stay(two: &Two) {
    let (scratch, path) = (two.one.tmp().join(crate::unique()), two.path("name"));
    std::fs::write(&scratch, "first").unwrap();
    assert!(two.one.publish_file(&scratch, &path).unwrap().is_some());
    assert_eq!(two.other.read(&path).unwrap(), b"first");
    let second = two.one.tmp().join(crate::unique());
    std::fs::write(&second, "second").unwrap();
    assert_eq!(two.other.publish_file(&second, &path).unwrap(), None);
    assert_eq!(two.other.read(&path).unwrap(), b"first");
    for path in [scratch, second] {
        std::fs::remove_file(path).unwrap();
    }
}

pub fn staged_records_are_published_once(two: &Two) {
    // A backend creates a missing directory.
    let path = two.root.join("new").join("name");
    let [first, second] = [("one", &two.one), ("other", &two.other)].map(|(writer, place)| {
        let span = Span { partition: 0, start: 0, next: 5, writer: Some(writer.to_owned()) };
        place.stage(&records(0..5), span, &path).unwrap()
    });
    assert!(first.file.publish(&path).unwrap().is_some());
    assert_eq!(second.file.publish(&path).unwrap(), None);
    drop((first.file, second.file));
    let published = two.other.open(&path).unwrap();
    assert_eq!(published.len(), first.size);
    assert!(crate::footer::check(&path, &published).unwrap());
}

pub fn files_are_listed(two: &Two) {
    assert!(list(&two.one, &two.root.join("nowhere")).is_empty());
    assert!(two.one.dirs(&two.root.join("nowhere")).unwrap().is_empty());
    for name in ["b", "a.parquet", "_c"] {
        two.one.publish(b"x", &two.path(name)).unwrap();
    }
    let below = two.path("below");
    two.one.make_dir(&below).unwrap();
    two.one.publish(b"x", &below.join("d")).unwrap();
    let files = |names: Vec<String>| names.into_iter().filter(|name| name != "below").collect::<Vec<_>>();
    // A disk lists the subdirectory too.
    let number = 3 + usize::from(two.one.is_disk());
    assert_eq!(files(two.names(number)), ["_c", "a.parquet", "b"]);
    assert_eq!(two.other.dirs(&two.root.join("dir")).unwrap(), ["below"]);
}

pub fn a_file_is_replaced_if_unchanged(two: &Two) {
    let path = two.path("name");
    let (none, created) = two.one.read_revision(&path).unwrap();
    assert_eq!((none, &created), (None, &Revision::None));
    for access in [Access::Shared, Access::Owner] {
        let (_, read) = two.one.read_revision(&path).unwrap();
        assert!(two.one.replace(format!("{access:?} one").as_bytes(), &path, &read, access).unwrap());
        // A disk has no revisions: there a lock excludes the other process.
        if !two.one.is_disk() {
            assert!(!two.other.replace(b"other", &path, &read, access).unwrap());
        }
        assert_eq!(two.other.read(&path).unwrap(), format!("{access:?} one").as_bytes());
    }
}

pub fn replacements_are_not_lost(two: &Two) {
    let (dir, path) = (two.root.join("locked"), two.path("names"));
    thread::scope(|scope| {
        for (place, writer) in [(&two.one, "one"), (&two.other, "other")] {
            let (dir, path) = (&dir, &path);
            scope.spawn(move || {
                for i in 0..5 {
                    loop {
                        let _held = place.lock_dir(dir).unwrap();
                        let (bytes, read) = place.read_revision(path).unwrap();
                        let text = String::from_utf8(bytes.unwrap_or_default()).unwrap() + &format!("{writer} {i}\n");
                        if place.replace(text.as_bytes(), path, &read, Access::Shared).unwrap() {
                            break;
                        }
                    }
                }
            });
        }
    });
    let text = String::from_utf8(two.one.read(&path).unwrap()).unwrap();
    let mut names: Vec<&str> = text.lines().collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 10, "{text}");
}

pub fn files_are_deleted(two: &Two) {
    let path = two.path("name");
    two.one.publish(b"first", &path).unwrap();
    two.other.delete(&path).unwrap();
    assert_eq!(two.one.read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(two.names(0).is_empty());
    assert!(two.one.publish(b"second", &path).unwrap().is_some());
    assert_eq!(two.other.read(&path).unwrap(), b"second");
}

pub fn files_are_set_aside(two: &Two) {
    let (from, to) = (two.path("name"), two.root.join("aside").join("name-1"));
    two.one.publish(b"damaged", &from).unwrap();
    two.one.set_aside(&from, &to).unwrap();
    assert_eq!(two.other.read(&from).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(two.other.read(&to).unwrap(), b"damaged");
}

pub fn missing_files_are_not_found(two: &Two) {
    let path = two.path("missing");
    let errors = [
        two.one.read(&path).unwrap_err(),
        two.one.open(&path).unwrap_err(),
        two.one.modified(&path).unwrap_err(),
        two.one.stamp(&path).unwrap_err(),
        two.one.set_aside(&path, &two.root.join("aside").join("missing")).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
    assert_eq!(two.one.read_revision(&path).unwrap(), (None, Revision::None));
}

pub fn ranges_are_read(two: &Two) {
    let path = two.path("name");
    // Longer than what is read with the length of an object.
    let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    two.one.publish(&bytes, &path).unwrap();
    let input = two.other.open(&path).unwrap();
    assert_eq!(input.len(), bytes.len() as u64);
    for (start, length) in [(0, 4), (199_992, 8), (1000, 0), (70_000, 100_000), (0, 200_000)] {
        let read = input.get_bytes(start as u64, length).unwrap();
        assert_eq!(&read[..], &bytes[start..start + length]);
    }
    let mut rest = Vec::new();
    input.get_read(150_000).unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(rest, &bytes[150_000..]);
    assert!(input.get_bytes(199_999, 2).is_err());
}

pub fn many_threads_read_one_file(two: &Two) {
    let path = two.path("name");
    let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    two.one.publish(&bytes, &path).unwrap();
    let input = two.other.open(&path).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (input, bytes) = (&input, &bytes);
            scope.spawn(move || {
                for i in 0..300 {
                    let start = (i * 7919 + thread * 24_977) % 190_000;
                    assert_eq!(&input.get_bytes(start as u64, 5000).unwrap()[..], &bytes[start..start + 5000]);
                    let mut read = vec![0; 9000];
                    input.get_read(start as u64).unwrap().read_exact(&mut read).unwrap();
                    assert_eq!(read, &bytes[start..start + 9000]);
                }
            });
        }
    });
}

pub fn stamps_and_times_follow_changes(two: &Two) {
    let path = two.path("name");
    two.one.publish(b"first", &path).unwrap();
    let stamp = two.other.stamp(&path).unwrap();
    assert_eq!(two.one.stamp(&path).unwrap(), stamp);
    let made = two.other.modified(&path).unwrap();
    assert!(made.elapsed().is_ok_and(|age| age < Duration::from_secs(60)));
    let (_, read) = two.one.read_revision(&path).unwrap();
    assert!(two.one.replace(b"second", &path, &read, Access::Shared).unwrap());
    assert_ne!(two.other.stamp(&path).unwrap(), stamp);
    assert!(two.other.modified(&path).unwrap() >= made);
}

pub fn notes_replace_each_other(two: &Two) {
    let path = two.path("changes");
    two.one.note(b"one", &path).unwrap();
    let first = two.other.stamp(&path);
    two.other.note(b"another", &path).unwrap();
    let second = two.one.stamp(&path);
    match two.one.is_disk() {
        true => assert!(first.is_err() && second.is_err(), "a disk has no notes"),
        false => assert_ne!(first.unwrap(), second.unwrap()),
    }
}

pub fn probes_leave_nothing(two: &Two) {
    two.one.probe(&two.path(".probe")).unwrap();
    assert!(two.names(0).is_empty());
    // An interval in which a disk is polled is too short for requests that cost money.
    let patience = two.one.patience(Duration::from_millis(1));
    assert_eq!(patience == Duration::from_millis(1), two.one.is_disk());
}

pub fn lock_files_exclude_each_other(two: &Two) {
    let path = two.path("a.lock");
    let held = two.one.try_lock(&path).unwrap().unwrap();
    assert!(held.holds() && !two.one.lost_lock());
    assert!(two.other.try_lock(&path).unwrap().is_none());
    drop(held);
    assert!(two.other.try_lock(&path).unwrap().is_some());
}

pub fn a_lock_is_waited_for(two: &Two) {
    let (path, waits, released) = (two.root.join("new").join("a.lock"), AtomicBool::new(false), AtomicBool::new(false));
    let held = two.one.lock(&path, &|| panic!("nobody holds it")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let held = two.other.lock(&path, &|| waits.store(true, Ordering::SeqCst)).unwrap();
            assert!(held.holds() && released.load(Ordering::SeqCst));
        });
        while !waits.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(10));
        }
        released.store(true, Ordering::SeqCst);
        drop(held);
    });
}

pub fn directories_are_locked(two: &Two) {
    let dir = two.root.join("dir");
    let held = two.one.try_lock_dir(&dir, true).unwrap().unwrap();
    assert!(held.holds());
    assert!(two.other.try_lock_dir(&dir, true).unwrap().is_none());
    drop(held);
    assert!(two.other.try_lock_dir(&dir, true).unwrap().is_some());
}
