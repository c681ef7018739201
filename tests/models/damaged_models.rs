//! Damages every file below `models/` in every way: only the affected segmentation stops, and all commands report the same
//! fault.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Place, Running, eventually, files};

use crate::common;

/// The damaged segmentation, and the one that files are swapped with. All others must be unaffected.
const VICTIM: &str = "price_rating";
const PARTNER: &str = "discount";
const OTHER: &str = "rating_count";

/// The files of a segmentation: versions 4, 5 and 6 serve.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    Serving,
    Old,
    Sample,
    Slices,
    History,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Damage {
    Deleted,
    Empty,
    Half,
    Garbage,
    Swapped,
    Denied,
    Directory,
}

/// The result of a training without new records.
#[derive(Debug, PartialEq)]
enum Training {
    /// It makes version 7, which serves slice 3.
    NewVersion,
    /// It restores the file, and the same versions serve.
    MakesAgain,
    /// It changes nothing.
    Nothing,
    /// It skips this segmentation.
    Refused,
}

/// The expected results of one case.
#[derive(Debug, PartialEq)]
struct Expected {
    /// The fault reported by `doctor`, if it can detect it: kind and reason.
    fault: Option<(&'static str, &'static str)>,
    /// True if slice 3 answers after a start.
    serves: bool,
    /// True if its points are available.
    points: bool,
    training: Training,
}

fn expected(target: Target, damage: Damage) -> Expected {
    let reason = match damage {
        Damage::Deleted => "missing",
        Damage::Empty | Damage::Half | Damage::Garbage | Damage::Directory => "damaged",
        Damage::Swapped => "misnamed",
        Damage::Denied => "unreadable",
    };
    let denied = damage == Damage::Denied;
    match target {
        Target::Serving => Expected {
            fault: Some(("the model file", reason)),
            serves: false,
            points: false,
            training: Training::NewVersion,
        },
        Target::Old => Expected {
            fault: Some(("the model file", reason)),
            serves: true,
            points: true,
            training: Training::Nothing,
        },
        Target::Sample => Expected {
            fault: Some(("the sample", reason)),
            serves: true,
            points: false,
            // A file that another user could read is no reason to train again.
            training: if denied { Training::Nothing } else { Training::NewVersion },
        },
        // The partner's lists contain the same version numbers.
        Target::Slices | Target::History if damage == Damage::Swapped => {
            Expected { fault: None, serves: true, points: true, training: Training::Nothing }
        }
        Target::Slices => Expected {
            fault: Some(("the list of serving versions", reason)),
            serves: false,
            points: false,
            training: if denied { Training::Refused } else { Training::MakesAgain },
        },
        Target::History => Expected {
            fault: Some(("the list of when versions served", reason)),
            serves: true,
            points: true,
            training: if denied { Training::Refused } else { Training::MakesAgain },
        },
    }
}

fn file(target: Target) -> &'static str {
    match target {
        Target::Serving => "6.json",
        Target::Old => "1.json",
        Target::Sample => "6.sample.parquet",
        Target::Slices => "slices.json",
        Target::History => "served.ndjson",
    }
}

fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&path, target).unwrap();
    }
}

/// A small store with two versions of each model.
fn trained() -> Place {
    let place = Place::new();
    let rows = place.ok(&["generate", "120", "--format", "ndjson"]);
    let lines: Vec<&str> = rows.lines().collect();
    place.write("first.ndjson", lines[..60].join("\n") + "\n");
    place.write("rest.ndjson", lines[60..].join("\n") + "\n");
    for (data, versions) in [("first.ndjson", 3), ("rest.ndjson", 6)] {
        let up = place.up(&["--data", data, "--append"]);
        assert_eq!(up.interrupt().code, Some(0));
        assert!(place.path(&format!("store/models/{VICTIM}/{versions}.json")).exists());
    }
    place
}

fn damage(place: &Place, target: Target, damage: Damage) {
    let path = place.path(&format!("store/models/{VICTIM}/{}", file(target)));
    let bytes = std::fs::read(&path).unwrap();
    match damage {
        Damage::Deleted => std::fs::remove_file(path).unwrap(),
        Damage::Empty => std::fs::write(path, b"").unwrap(),
        Damage::Half => std::fs::write(path, &bytes[..bytes.len() / 2 - 7]).unwrap(),
        Damage::Garbage => std::fs::write(path, b"\x00\xffPAR1 [1, 2").unwrap(),
        Damage::Swapped => {
            let partner = place.path(&format!("store/models/{PARTNER}/{}", file(target)));
            let other = std::fs::read(&partner).unwrap();
            std::fs::write(partner, bytes).unwrap();
            std::fs::write(path, other).unwrap();
        }
        Damage::Denied => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o000)).unwrap(),
        Damage::Directory => {
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            // Moving a directory requires write permission.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        }
    }
}

/// Root may read everything, so the commands run without the corresponding capabilities. (Another user might not reach the
/// binary.)
fn as_somebody(command: &mut Command) {
    const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
    const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;
    // SAFETY: between fork and exec the closure only makes system calls with integer arguments.
    unsafe {
        command.pre_exec(|| {
            if libc::geteuid() == 0 {
                for capability in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH] {
                    // The capabilities of a program started by root are limited by this bounding set.
                    if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
            }
            Ok(())
        });
    }
}

fn open_to_all(dir: &Path) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            open_to_all(&path);
        } else {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        }
    }
}

struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(place: &Place, args: &[&str]) -> Said {
    let mut command = place.command(args);
    as_somebody(&mut command);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn predict(serve: &Running, name: &str) -> common::Answer {
    let row = r#"[{"discounted_price": 300, "rating": 4.5, "rating_count": 10, "discount_percentage": 20}]"#;
    serve.post(&format!("/api/segments/{name}/predict"), row)
}

fn version_of(place: &Place, slice: &str) -> u64 {
    let path = place.path(&format!("store/models/{VICTIM}/slices.json"));
    let slices: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    slices[slice]["version"].as_u64().unwrap()
}

fn try_it(whole: &Place, target: Target, how: Damage) {
    let case = format!("{target:?} {how:?}");
    let Expected { fault, serves, points, training } = expected(target, how);
    let place = Place::new();
    copy(&whole.path("store"), &place.path("store"));
    open_to_all(place.dir.path());
    damage(&place, target, how);
    let path: PathBuf = place.path(&format!("store/models/{VICTIM}/{}", file(target)));
    let (as_was, shown) = (std::fs::read(&path).ok(), format!("models/{VICTIM}/{}", file(target)));

    // Doctor reports the file, its kind, the reason and the remedy.
    let doctor = run(&place, &["doctor", "--bind", "127.0.0.1:0"]);
    let about = |text: &str| text.lines().find(|line| line.contains(&shown)).map(str::to_owned);
    match fault {
        Some((kind, reason)) => {
            assert_eq!(doctor.code, Some(1), "{case}: {}", doctor.stdout);
            let line = about(&doctor.stdout).unwrap_or_else(|| panic!("{case}: {}", doctor.stdout));
            assert!(line.starts_with("MEND") && line.contains(kind) && line.contains(reason), "{case}: {line}");
            assert!(!line.contains("ingest"), "{case}: {line}");
            let next = match (target, how) {
                (_, Damage::Denied) => "let this user read it",
                (Target::Old, _) => "this version does not serve",
                _ => "tercile train",
            };
            assert!(line.contains(next), "{case}: {line}");
        }
        None => assert_eq!(doctor.code, Some(0), "{case}: {}", doctor.stdout),
    }

    // The list of models contains the others, and a warning is printed.
    let models = run(&place, &["models"]);
    assert_eq!(models.code, Some(0), "{case}: {}", models.stderr);
    assert!(models.stdout.contains(OTHER), "{case}: {}", models.stdout);
    // An empty or missing history is treated like that of an older store.
    let history = target == Target::History && fault.is_some() && !matches!(how, Damage::Deleted | Damage::Empty);
    assert_eq!(about(&models.stderr).is_some(), !serves || history, "{case}: {}", models.stderr);
    let all = run(&place, &["models", VICTIM]);
    assert_eq!(all.code, Some(0), "{case}: {}", all.stderr);

    // The service starts, and undamaged models serve.
    let mut command = place.command(&["serve", "--bind", "127.0.0.1:0"]);
    as_somebody(&mut command);
    let mut serve = place.start_command(command, "serve");
    let said = serve.said("documented at ");
    serve.address = said.split("/docs").next().unwrap().to_owned();
    assert_eq!(predict(&serve, OTHER).status, 200, "{case}");
    let answer = predict(&serve, VICTIM);
    let segments = serve.get("/api/segments").json();
    let victim = segments.as_array().unwrap().iter().find(|one| one["name"] == VICTIM).unwrap();
    let told = victim["slices"][2]["fault"].as_str().map(str::to_owned);
    let ready = serve.get("/health/ready");
    let metric = format!("tercile_model_faults{{segmentation=\"{VICTIM}\",slice=\"3\"}} 1");
    assert_eq!(serve.get("/metrics").text.contains(&metric), !serves, "{case}");
    let root = place.dir.path().display().to_string();
    if serves {
        assert_eq!((answer.status, told, ready.status), (200, None, 200), "{case}: {}", ready.text);
    } else {
        let (kind, reason) = fault.unwrap();
        let class = format!("{kind} is {reason}");
        assert_eq!((answer.status, ready.status), (503, 503), "{case}: {}", answer.text);
        assert_eq!(answer.content_type, "application/problem+json", "{case}");
        assert!(answer.text.contains(&class) && ready.text.contains(&class), "{case}: {} {}", answer.text, ready.text);
        assert!(!answer.text.contains(&root) && !answer.text.contains(".json\""), "{case}: {}", answer.text);
        assert_eq!(told.as_deref(), Some(class.as_str()), "{case}");
        assert!(serve.stderr().contains(&shown), "{case}: {}", serve.stderr());
    }
    let answer = serve.get(&format!("/api/segments/{VICTIM}/points"));
    assert_eq!(answer.status, if points { 200 } else { 503 }, "{case}: {}", answer.text);
    assert!(!answer.text.contains(&root), "{case}: {}", answer.text);
    assert_eq!(serve.get(&format!("/api/segments/{OTHER}/points")).status, 200, "{case}");

    // A training continues and never overwrites existing files.
    let trained = run(&place, &["train"]);
    assert_eq!(trained.code, Some(0), "{case}: {}", trained.stderr);
    assert!(trained.stdout.contains(OTHER), "{case}: {}", trained.stdout);
    let lines = trained.stderr.lines().filter(|line| line.contains(&shown)).count();
    match training {
        Training::NewVersion => {
            assert_eq!(
                (version_of(&place, "3"), version_of(&place, "2"), lines),
                (7, 5, 1),
                "{case}: {}",
                trained.stderr
            );
            assert_eq!(std::fs::read(&path).ok(), as_was, "{case}");
        }
        Training::MakesAgain => {
            assert_eq!(
                (version_of(&place, "3"), version_of(&place, "1"), lines),
                (6, 4, 1),
                "{case}: {}",
                trained.stderr
            );
            assert!(!place.path(&format!("store/models/{VICTIM}/7.json")).exists(), "{case}");
            let aside = std::fs::read_dir(place.path("store/aside")).map_or(0, Iterator::count);
            assert_eq!(
                aside,
                usize::from(
                    !matches!(how, Damage::Deleted | Damage::Empty if target == Target::History)
                        && how != Damage::Deleted
                ),
                "{case}"
            );
        }
        Training::Nothing => {
            assert_eq!((version_of(&place, "3"), lines), (6, 0), "{case}: {}", trained.stderr);
            assert_eq!(std::fs::read(&path).ok(), as_was, "{case}");
        }
        Training::Refused => {
            assert!(trained.stderr.contains("no new model: price_rating: "), "{case}: {}", trained.stderr);
            assert_eq!(lines, 1, "{case}: {}", trained.stderr);
        }
    }
    if training != Training::Refused {
        eventually(&format!("{case}: answers"), || predict(&serve, VICTIM).status == 200);
        eventually(&format!("{case}: points"), || {
            serve.get(&format!("/api/segments/{VICTIM}/points")).status
                == if how == Damage::Denied && !points && serves { 503 } else { 200 }
        });
        // The segmentation that files were swapped with is checked separately.
        eventually(&format!("{case}: ready"), || serve.get("/health/ready").status == 200);
    }
    assert_eq!(serve.interrupt().code, Some(0), "{case}");
}

/// One test per kind of damage: they run in parallel, and a failure names the damage.
macro_rules! damages {
    ($($name:ident: $damage:expr,)+) => {$(
        #[test]
        fn $name() {
            let whole = trained();
            for target in [Target::Serving, Target::Old, Target::Sample, Target::Slices, Target::History] {
                try_it(&whole, target, $damage);
            }
        }
    )+};
}

damages! {
    a_deleted_file: Damage::Deleted,
    an_empty_file: Damage::Empty,
    half_a_file: Damage::Half,
    garbage_in_a_file: Damage::Garbage,
    a_file_that_was_swapped: Damage::Swapped,
    a_file_that_may_not_be_read: Damage::Denied,
    a_directory_in_place_of_a_file: Damage::Directory,
}

#[test]
fn up_starts_over_a_damaged_model_and_replaces_it() {
    let place = trained();
    damage(&place, Target::Serving, Damage::Half);
    let up = place.up(&["--data", "first.ndjson"]);
    assert_eq!(predict(&up, VICTIM).json()[0]["version"], 7);
    assert_eq!(up.get("/health/ready").status, 200);
}

#[test]
fn what_somebody_chose_survives_a_lost_list() {
    let place = trained();
    place.ok(&["models", "pin", VICTIM, "3"]);
    damage(&place, Target::Slices, Damage::Garbage);
    let trained = place.run(&["train"]);
    assert!(trained.stderr.contains("version 3 of slice 3 counts as pinned"), "{}", trained.stderr);
    assert_eq!(version_of(&place, "3"), 3);
    // A lost model stays pinned until it is unpinned.
    std::fs::remove_file(place.path(&format!("store/models/{VICTIM}/3.json"))).unwrap();
    let trained = place.run(&["train"]);
    assert!(
        trained.stderr.contains("version 3 of price_rating is pinned to slice 3 and cannot serve"),
        "{}",
        trained.stderr
    );
    assert_eq!(version_of(&place, "3"), 3);
    place.ok(&["models", "unpin", VICTIM, "3"]);
    assert!(version_of(&place, "3") >= 6);
    // A rollback repairs it too.
    damage(&place, Target::Serving, Damage::Empty);
    std::fs::remove_file(place.path(&format!("store/models/{VICTIM}/5.json"))).unwrap();
    place.ok(&["models", "rollback", VICTIM, "2"]);
    assert_eq!(version_of(&place, "2"), 2);
}

/// An invalid file under the name of a version that does not exist yet: trainings go on, and its number is not used.
#[test]
fn an_invalid_file_of_a_later_version_stops_no_training() {
    let place = trained();
    place.write("store/models/price_rating/9.json", "garbage");
    let doctor = place.run(&["doctor", "--bind", "127.0.0.1:0"]);
    assert!(doctor.code == Some(1) && doctor.stdout.contains("price_rating/9.json is damaged"), "{}", doctor.stdout);
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sql"), &place.path("sql"));
    let view = std::fs::read_to_string(place.path("sql/30_price_rating.sql")).unwrap();
    place.write("sql/30_price_rating.sql", view.trim_end().to_owned() + "\nWHERE rating >= 0\n");
    let trained = place.run(&["train"]);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    assert!(trained.stderr.contains("price_rating/9.json is damaged") && !trained.stderr.contains("ingest"));
    assert_eq!((version_of(&place, "1"), version_of(&place, "3")), (10, 12));
    assert_eq!(std::fs::read(place.path("store/models/price_rating/9.json")).unwrap(), b"garbage");
    let serve = place.serve(&[]);
    assert_eq!(predict(&serve, VICTIM).json()[0]["version"], 12);
}

#[test]
fn sql_and_commands_name_the_file_and_the_next_step() {
    let place = trained();
    damage(&place, Target::Serving, Damage::Empty);
    place.write("rows.csv", "discounted_price,rating\n300,4.5\n");
    let named = "the model file store/models/price_rating/6.json is damaged (";
    for args in [
        vec!["sql", "-c", "SELECT segment('price_rating', 300, 4.5)"],
        vec!["model", "show", VICTIM],
        vec!["verify", VICTIM],
        vec!["verify", "store/models/price_rating/6.json"],
        vec!["predict", VICTIM, "rows.csv"],
        vec!["models", "pin", VICTIM, "6"],
        vec!["models", "rollback", VICTIM, "6"],
    ] {
        let error = place.fails(1, &args);
        assert!(error.contains(named) && error.contains("bring it back from a copy"), "{args:?}: {error}");
        assert!(!error.contains("ingest"), "{error}");
    }
    let serve = place.serve(&["--enable-sql"]);
    let answer = serve.post("/api/sql", r#"{"sql": "SELECT segment('price_rating', 300, 4.5)"}"#);
    assert!(answer.status == 422 && answer.text.contains("the model file is damaged"), "{}", answer.text);
    assert!(!answer.text.contains("6.json"), "{}", answer.text);
    let row = r#"[{"discounted_price": 300, "rating": 4.5}]"#;
    let answer = serve.post("/api/segments/price_rating/predict?as_of=6", row);
    assert!(answer.status == 503 && answer.text.contains("the model file is damaged"), "{}", answer.text);
    assert_eq!(serve.post("/api/segments/price_rating/predict?as_of=3", row).status, 200);
    // The file is restored.
    drop(serve);
}

#[test]
fn up_goes_on_where_its_first_training_finds_the_disk_full() {
    let place = trained();
    let disk = place.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=4m", "none", disk.to_str().unwrap()];
    if !Command::new("mount").args(mount).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no small disk can be mounted here");
        return;
    }
    copy(&place.path("store"), &disk.join("store"));
    std::fs::create_dir_all(disk.join("store/tmp")).unwrap();
    // Other SQL produces other models, for which there is no space.
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sql"), &place.path("sql"));
    let view = std::fs::read_to_string(place.path("sql/30_price_rating.sql")).unwrap();
    place.write("sql/30_price_rating.sql", view.trim_end().to_owned() + "\nWHERE rating >= 0\n");
    let ballast = disk.join("ballast");
    assert!(std::fs::write(&ballast, vec![7; 8_000_000]).is_err());
    let mut up = place.start(&["up", "--bind", "127.0.0.1:0", "--store", "disk/store", "--data", "first.ndjson"]);
    let said = up.said("the first training failed: ");
    assert!(said.contains("it is tried again in 1 s, and older models serve meanwhile"), "{said}");
    assert!(up.child.try_wait().unwrap().is_none());
    std::fs::remove_file(ballast).unwrap();
    up.address = up.line_with("ready at ");
    assert!(predict(&up, VICTIM).json()[0]["version"].as_u64().unwrap() >= 9);
    assert_eq!(up.interrupt().code, Some(0));
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
}
