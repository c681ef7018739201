//! A store with lost or modified files: every command reports the damage or works as documented in docs/operations.md, and no
//! record is replaced, skipped or stored twice. `TERCILE_TEST_FLIPS` is the number of single bits that are changed in turn.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Ended, Place, Running, files};

use crate::common;

/// Number of records in the topic.
pub(super) const ROWS: i64 = 1_000;

/// A broker with a topic of two partitions, and a store with all its records.
pub(super) struct Fed {
    pub(super) place: Place,
    _broker: Running,
    pub(super) address: String,
}

impl Fed {
    pub(super) fn new() -> Self {
        let place = Place::new();
        let mut broker = place.start(&["broker", "--topic", "products", "--partitions", "2"]);
        let address = broker.line_with("");
        place.ok(&["generate", &ROWS.to_string(), "--output", "rows.csv"]);
        place.ok(&["produce", "rows.csv", "--bootstrap-servers", &address]);
        let fed = Self { place, _broker: broker, address };
        fed.ingest("whole", 0);
        assert_eq!(fed.records("whole"), (ROWS, ROWS));
        fed
    }

    /// Copies the whole store.
    pub(super) fn copy(&self) -> PathBuf {
        let store = self.place.path("store");
        let _ = fs::remove_dir_all(&store);
        let copied = Command::new("cp").arg("-r").arg(self.place.path("whole")).arg(&store).status().unwrap();
        assert!(copied.success());
        store
    }

    pub(super) fn ingest(&self, store: &str, code: i32) -> Ended {
        let args =
            ["ingest", "--until-end", "--batch-rows", "50", "--store", store, "--bootstrap-servers", &self.address];
        let ended = self.place.run(&args);
        assert_eq!(ended.code, Some(code), "ingest: {}", ended.stderr);
        ended
    }

    pub(super) fn doctor(&self) -> Ended {
        self.place.run(&["doctor", "--bind", "127.0.0.1:0"])
    }

    /// The faults that doctor reports for the store.
    pub(super) fn faults(&self) -> String {
        self.store_faults(&self.doctor())
    }

    pub(super) fn store_faults(&self, doctor: &Ended) -> String {
        let said = &doctor.stdout;
        said.lines().filter(|line| line.contains("  store  ") && line.contains("MEND")).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn records(&self, store: &str) -> (i64, i64) {
        let sql = "SELECT count(*), count(DISTINCT _partition * 1000000 + _offset) FROM records";
        let csv = self.place.ok(&["sql", "--store", store, "--format", "csv", "-c", sql]);
        let (all, different) = csv.lines().nth(1).and_then(|line| line.split_once(',')).unwrap();
        (all.parse().unwrap(), different.parse().unwrap())
    }
}

/// The behaviour of a command on a damaged store.
#[derive(Clone, Copy)]
enum Then {
    /// It exits with code 1 and this message.
    Fails(&'static str),
    /// It succeeds.
    Works,
}

use Then::{Fails, Works};

/// A lost file or directory, the kind of loss, doctor's message, the results of sql and train, the result of ingest, and
/// whether ingest repairs the store.
struct Case {
    lost: &'static str,
    how: How,
    told: &'static str,
    readers: Then,
    ingest: Then,
    heals: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum How {
    Deleted,
    /// Truncated to half of its bytes.
    Cut,
    /// Truncated to zero bytes.
    Emptied,
}

use How::{Cut, Deleted, Emptied};

/// OLDEST, MIDDLE and NEWEST are files of partition 0.
const CASES: &[Case] = &[
    case(
        "source.json",
        Deleted,
        "source.json is missing",
        Fails("source.json is missing"),
        Fails("source.json is missing"),
    ),
    case(
        "source.json",
        Cut,
        "source.json cannot be read",
        Fails("copy store/marks/source.json to store/source.json"),
        Fails("source.json cannot be read"),
    ),
    case(
        "source.json",
        Emptied,
        "source.json cannot be read",
        Fails("source.json cannot be read"),
        Fails("source.json cannot be read"),
    ),
    heals("marks/source.json", Deleted, "marks/source.json is missing"),
    heals("marks/source.json", Cut, "marks/source.json cannot be read"),
    heals("marks/0", Deleted, "marks/0 is missing"),
    heals("marks/0", Cut, "marks/0 cannot be read"),
    heals("marks/1", Emptied, "marks/1 cannot be read"),
    heals("marks", Deleted, "marks/source.json is missing"),
    heals("records/products/0/_start", Deleted, "_start is lost or damaged"),
    heals("records/products/0/_start", Emptied, "_start is lost or damaged"),
    case("OLDEST", Deleted, "no file covers the offsets 0 to", Fails("records/products/0 are missing"), Works),
    case("MIDDLE", Deleted, "no file covers the offsets", Fails("records/products/0 are missing"), Works),
    case(
        "NEWEST",
        Deleted,
        "the files end at offset",
        Fails("records/products/0 are missing"),
        Fails("records/products/0 are missing"),
    ),
    case("OLDEST", Cut, "parquet is damaged", Fails("parquet is damaged"), Works),
    case("MIDDLE", Emptied, "parquet is damaged", Fails("parquet is damaged"), Works),
    Case { heals: true, ..case("NEWEST", Cut, "parquet is damaged", Fails("parquet is damaged"), Works) },
    Case { heals: true, ..case("NEWEST", Emptied, "parquet is damaged", Fails("parquet is damaged"), Works) },
    case(
        "records/products/0",
        Deleted,
        "records/products/0 are missing",
        Fails("records/products/0 are missing"),
        Fails("records/products/0 are missing"),
    ),
    case(
        "records/products",
        Deleted,
        "records/products/1 are missing",
        Fails("records/products/0 are missing"),
        Fails("are missing"),
    ),
    case(
        "records",
        Deleted,
        "records/products/1 are missing",
        Fails("records/products/0 are missing"),
        Fails("are missing"),
    ),
];

const fn case(lost: &'static str, how: How, told: &'static str, readers: Then, ingest: Then) -> Case {
    Case { lost, how, told, readers, ingest, heals: false }
}

/// A file that no record depends on: it is written again.
const fn heals(lost: &'static str, how: How, told: &'static str) -> Case {
    Case { lost, how, told, readers: Works, ingest: Works, heals: true }
}

pub(super) fn damage(path: &Path, how: How) {
    match how {
        Deleted if path.is_dir() => fs::remove_dir_all(path).unwrap(),
        Deleted => fs::remove_file(path).unwrap(),
        Cut => {
            let length = fs::metadata(path).unwrap().len();
            fs::File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap();
        }
        Emptied => fs::write(path, "").unwrap(),
    }
}

#[test]
fn each_file_of_a_store_is_lost_in_turn() {
    let fed = Fed::new();
    let place = &fed.place;
    for Case { lost, how, told, readers, ingest, heals } in CASES {
        let store = fed.copy();
        let parquet: Vec<PathBuf> = files(&store.join("records/products/0"))
            .into_iter()
            .filter(|file| file.extension().is_some_and(|ending| ending == "parquet"))
            .collect();
        let path = match *lost {
            "OLDEST" => parquet[0].clone(),
            "MIDDLE" => parquet[1].clone(),
            "NEWEST" => parquet[parquet.len() - 1].clone(),
            name => store.join(name),
        };
        let what = format!("{lost} {how:?}");
        eprintln!("{what}");
        damage(&path, *how);
        let told_by_doctor = fed.doctor();
        assert_eq!(told_by_doctor.code, Some(1), "{what}");
        assert!(fed.store_faults(&told_by_doctor).contains(told), "{what}: {}", told_by_doctor.stdout);
        // Training is slow, and it reads a snapshot in the same way as `files`.
        let commands: [&[&str]; 4] =
            [&["files"], &["sql", "-c", "SELECT count(*) FROM records"], &["train"], &["compact"]];
        let thorough = matches!(*lost, "source.json" | "NEWEST") && *how == Deleted;
        for command in &commands[..if thorough { 3 } else { 2 }] {
            match readers {
                Fails(words) => {
                    let said = place.fails(1, command);
                    assert!(said.contains(words), "{what}, {command:?}: {said}");
                }
                Works => drop(place.ok(command)),
            }
        }
        if matches!(readers, Works) {
            assert_eq!(fed.records("store"), (ROWS, ROWS), "{what}");
        }
        if *lost == "source.json" && thorough {
            // No other topic can take over the store, not even one with the same name.
            let mut other = place.start(&["broker", "--topic", "products"]);
            let address = other.line_with("");
            for command in [
                &["ingest", "--until-end", "--bootstrap-servers", &address][..],
                &["up", "--bind", "127.0.0.1:0"],
                commands[3],
                &["serve", "--bind", "127.0.0.1:0"],
            ] {
                let said = place.fails(1, command);
                assert!(said.contains("source.json"), "{command:?}: {said}");
            }
        }
        match ingest {
            Fails(words) => {
                let said = fed.ingest("store", 1).stderr;
                assert!(said.contains(words), "{what}: {said}");
            }
            Works => drop(fed.ingest("store", 0)),
        }
        let left = fed.faults();
        if *heals {
            assert_eq!(left, "", "{what}");
            assert_eq!(fed.records("store"), (ROWS, ROWS), "{what}");
        } else {
            assert!(left.contains(told), "{what}: {left}");
        }
        // Follows the advice of the message.
        if *lost == "source.json" {
            fs::copy(store.join("marks/source.json"), store.join("source.json")).unwrap();
        } else if matches!(ingest, Fails(_)) {
            for partition in ["0", "1"] {
                let mark = store.join("marks").join(partition);
                if left.contains(&format!("records/products/{partition} are missing")) {
                    fs::remove_file(mark).unwrap();
                }
            }
        } else {
            continue;
        }
        fed.ingest("store", 0);
        assert_eq!(fed.records("store"), (ROWS, ROWS), "{what}");
        assert_eq!(fed.faults(), "", "{what}");
    }
}

/// Flips one bit of a file and returns the previous content.
fn flip(path: &Path, bit: usize) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let mut flipped = bytes.clone();
    flipped[bit / 8] ^= 1 << (bit % 8);
    fs::write(path, flipped).unwrap();
    bytes
}

#[test]
fn a_bit_that_changed_is_told_by_every_command_and_never_written_anew() {
    let fed = Fed::new();
    let (place, store) = (&fed.place, fed.copy());
    assert!(fed.doctor().code.is_some());
    let sums = |faults: &str| faults.matches("is damaged").count();
    let oldest = files(&store.join("records/products/0")).into_iter().find(|f| f.extension().is_some()).unwrap();
    let name = oldest.file_name().unwrap().to_str().unwrap();
    let deep = || place.run(&["doctor", "--deep", "--bind", "127.0.0.1:0"]).stdout;
    assert!(deep().contains("files as their checksums say"), "{}", deep());
    let bits = fs::metadata(&oldest).unwrap().len() as usize * 8;
    // Within the data pages: in a file this small the footer is the last third.
    let flips = std::env::var("TERCILE_TEST_FLIPS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let query = ["sql", "-f", "csv", "-c", "SELECT * FROM records ORDER BY _offset, _partition"];
    let (whole, mut refused_queries) = (place.ok(&query), 0);
    for i in 1..=flips {
        let bit = bits / 2 * i / (flips + 1) + i;
        let before = flip(&oldest, bit);
        let said = deep();
        assert!(said.contains(name) && sums(&said) >= 1, "bit {bit}: {said}");
        let said = place.fails(1, &["compact"]);
        assert!(said.contains(name) && said.contains("is damaged"), "bit {bit}: {said}");
        // A query does not read columns that the footer's statistics show to be constant.
        let Ended { code, stdout, stderr: said } = place.run(&query);
        match code {
            Some(0) => assert_eq!(stdout, whole, "bit {bit}"),
            _ => assert!(said.contains(name) && said.contains("is damaged"), "bit {bit}: {said}"),
        }
        refused_queries += usize::from(code == Some(1));
        fs::write(&oldest, before).unwrap();
    }
    eprintln!("{flips} of {flips} bits were reported by doctor --deep and compact, {refused_queries} by a query");
    assert!(refused_queries * 10 > flips * 8, "{refused_queries} of {flips}");
    // A training reads some of the columns.
    let rating = column_chunk(&oldest, "rating");
    let bit = (rating.0 + rating.1 / 2) * 8;
    let refused = || {
        let Ended { code, stderr: said, .. } = place.run(&["train"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("no new model: price_rating") && !said.contains("no new model: discount"), "{said}");
        let error = said.lines().find(|line| line.starts_with("error: the training is incomplete: "));
        assert!(error.is_some_and(|error| error.contains(&format!("{name} is damaged"))), "{said}");
    };
    let before = flip(&oldest, bit);
    refused();
    fs::write(&oldest, before).unwrap();
    place.ok(&["train"]);
    // With models that were made before.
    let before = flip(&oldest, bit);
    refused();
    let said = place.fails(1, &["verify", "price_rating"]);
    assert!(said.contains(&format!("{name} is damaged")), "{said}");
    fs::write(&oldest, before).unwrap();
    place.ok(&["verify", "price_rating"]);
    assert_eq!(fed.faults(), "");
    place.ok(&["compact", "--grace", "0"]);
    place.ok(&["compact", "--grace", "0"]);
    assert_eq!(fed.records("store"), (ROWS, ROWS));
    assert!(deep().contains("2 files as their checksums say"), "{}", deep());
}

/// A store at a higher offset than its topic, as after the topic was truncated or restored from a backup: the topic id in
/// source.json connects them.
#[test]
fn a_store_ahead_of_its_topic_is_told_and_read_into_another() {
    let fed = Fed::new();
    let (place, store) = (&fed.place, fed.copy());
    let mut restored = place.start(&["broker", "--topic", "products", "--partitions", "2"]);
    let address = restored.line_with("");
    place.ok(&["generate", "300", "--output", "backup.csv"]);
    place.ok(&["produce", "backup.csv", "--bootstrap-servers", &address]);
    place.ok(&["ingest", "--until-end", "--bootstrap-servers", &address, "--store", "other"]);
    let id = |path: &Path| {
        let source: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        source["id"].as_str().unwrap().to_owned()
    };
    let (old, new) = (id(&store.join("source.json")), id(&place.path("other/source.json")));
    // Until then it is a different topic.
    let said = place.fails(3, &["ingest", "--until-end", "--bootstrap-servers", &address]);
    assert!(said.contains("is fed from"), "{said}");
    for path in ["source.json", "marks/source.json"] {
        let text = fs::read_to_string(store.join(path)).unwrap().replace(&old, &new);
        fs::write(store.join(path), text).unwrap();
    }
    for more in [&["--until-end"][..], &[], &["--until-end", "--accept-gap"], &["--group", "workers"]] {
        let said = place.fails(3, &[&["ingest", "--bootstrap-servers", &address], more].concat());
        assert!(said.contains("is ahead of its topic"), "{more:?}: {said}");
    }
    let said = place.fails(3, &["up", "--bind", "127.0.0.1:0", "--bootstrap-servers", &address]);
    assert!(said.contains("is ahead of its topic"), "up: {said}");
    let doctor = place.run(&["doctor", "--bind", "127.0.0.1:0", "--bootstrap-servers", &address]);
    assert_eq!(doctor.code, Some(1));
    assert!(doctor.stdout.contains("is ahead of its topic"), "{}", doctor.stdout);
    // The remaining records of the topic are read into another store, and the old store is unchanged.
    place.ok(&["ingest", "--until-end", "--bootstrap-servers", &address, "--store", "store2"]);
    assert_eq!((fed.records("store2"), fed.records("store")), ((300, 300), (ROWS, ROWS)));
    place.ok(&["produce", "backup.csv", "--bootstrap-servers", &address]);
    place.ok(&["ingest", "--until-end", "--bootstrap-servers", &address, "--store", "store2"]);
    assert_eq!(fed.records("store2"), (600, 600));
}

/// Lost temporary files are written again.
#[test]
fn a_lost_scratch_file_holds_nothing_up() {
    let fed = Fed::new();
    let place = &fed.place;
    let tmp = place.path("slow/tmp");
    let lost = std::sync::atomic::AtomicUsize::new(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Enough losses to hit each file of the run, but bounded, because an unlimited fast thread would prevent every
            // publish.
            while !done.load(std::sync::atomic::Ordering::Relaxed)
                && lost.load(std::sync::atomic::Ordering::Relaxed) < 20
            {
                for file in fs::read_dir(&tmp).into_iter().flatten().flatten() {
                    // A file that is being written keeps its name until it is complete.
                    let whole = fs::read(file.path()).is_ok_and(|bytes| bytes.len() > 8 && bytes.ends_with(b"PAR1"));
                    let gone = whole && fs::remove_file(file.path()).is_ok();
                    lost.fetch_add(usize::from(gone), std::sync::atomic::Ordering::Relaxed);
                }
            }
        });
        let args =
            ["ingest", "--until-end", "--batch-rows", "100", "--store", "slow", "--bootstrap-servers", &fed.address];
        let ended = place.run(&args);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    });
    eprintln!("{lost:?} scratch files were lost");
    assert!(lost.into_inner() > 0);
    assert_eq!(fed.records("slow"), (ROWS, ROWS));
    let doctor = place.run(&["doctor", "--deep", "--store", "slow", "--bind", "127.0.0.1:0"]).stdout;
    assert!(doctor.contains("as their checksums say"), "{doctor}");
}

#[test]
fn a_path_that_queries_cannot_read_is_refused_at_once() {
    use std::os::unix::ffi::OsStrExt as _;
    let place = Place::new();
    for (bytes, words) in [(&b"a\nb"[..], "line breaks"), (b"a\tb", "line breaks"), (b"a\xffb", "UTF-8")] {
        let path = std::ffi::OsStr::from_bytes(bytes);
        for (command, flag) in [("train", "--store"), ("up", "--store"), ("sql", "--sql"), ("doctor", "--sql")] {
            let output = place.command(&[command, flag]).arg(path).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains(words), "{said}");
        }
        assert!(!place.path("").join(path).exists());
        // A relative path is resolved against the working directory.
        let inside = place.path("").join(path);
        fs::create_dir(&inside).unwrap();
        let output = place.command(&["train", "--store", "store"]).current_dir(&inside).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
    }
    for name in ["a b", "a%20b", "é", "a'b\"c", "[a]*?", "a\\b", "#c"] {
        place.ok(&["generate", "30", "--output", "rows.csv"]);
        let up = place.up(&["--data", "rows.csv", "--store", name]);
        assert_eq!(up.interrupt().code, Some(0), "{name}");
        let csv = place.ok(&["sql", "--store", name, "-f", "csv", "-c", "SELECT count(*) FROM records"]);
        assert_eq!(csv.lines().nth(1), Some("30"), "{name}");
        place.ok(&["doctor", "--deep", "--store", name, "--bind", "127.0.0.1:0"]);
    }
}

/// A store of a build without marks and checksums.
#[test]
fn a_store_of_an_earlier_build_is_read_and_gets_marks() {
    let place = Place::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-method-1");
    assert!(Command::new("cp").arg("-r").arg(fixture).arg(place.path("store")).status().unwrap().success());
    let doctor = || place.run(&["doctor", "--deep", "--bind", "127.0.0.1:0"]).stdout;
    assert!(doctor().contains("1 file of an earlier build: no checksum"), "{}", doctor());
    assert!(!doctor().lines().any(|line| line.contains("store  ") && line.contains("MEND")), "{}", doctor());
    let rows = place.number("SELECT count(*) FROM records");
    assert!(!place.path("store/marks").exists());
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    assert_eq!(place.number("SELECT count(*) FROM records"), rows);
    assert!(place.path("store/marks/0").exists() && place.path("store/marks/source.json").exists());
    // The store has lost the file that names its source, and no other file names it.
    fs::remove_file(place.path("store/source.json")).unwrap();
    fs::remove_dir_all(place.path("store/marks")).unwrap();
    let said = place.fails(1, &["up", "--bind", "127.0.0.1:0"]);
    assert!(said.contains("source.json is missing") && said.contains("bring it back from a copy"), "{said}");
}

/// The byte range of a column in the first row group of a file.
fn column_chunk(path: &Path, name: &str) -> (usize, usize) {
    let file = fs::File::open(path).unwrap();
    let metadata = parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
    let group = metadata.row_group(0);
    let column = group.columns().iter().find(|column| column.column_path().string() == name).unwrap();
    let (start, length) = column.byte_range();
    (start as usize, length as usize)
}
