//! Connects the rows of docs/operations.md about damage with their tests: each row is listed here, each listed test exists, and
//! no row is listed that is not in the manual.

use std::path::Path;

/// The first cell of a row, and its tests: binary, module, function.
type Row = (&'static str, &'static [&'static str]);

/// The section "What can go wrong, and what to do".
const CASES: &[Row] = &[
    ("`source.json` is lost or damaged", &["pipeline::damaged_store::each_file_of_a_store_is_lost_in_turn"]),
    (
        "`marks/source.json` or a file in `marks/` is lost or damaged",
        &[
            "pipeline::damaged_store::each_file_of_a_store_is_lost_in_turn",
            "http::guard::lost_or_damaged_keys_are_told_and_let_nobody_in",
        ],
    ),
    (
        "`marks/source.json` names another topic than `source.json`",
        &["pipeline::store_sources::marks_of_another_store_are_refused_by_writers"],
    ),
    (
        "`_start` or `_expired` of a partition is lost or damaged",
        &[
            "pipeline::damaged_store::each_file_of_a_store_is_lost_in_turn",
            "pipeline::store_sources::a_lost_note_of_expired_records_is_written_again",
        ],
    ),
    (
        "a file of records is lost, not the newest of its partition",
        &[
            "pipeline::damaged_store::each_file_of_a_store_is_lost_in_turn",
            "pipeline::store_sources::up_goes_on_storing_where_an_older_file_is_lost",
        ],
    ),
    (
        "the newest file of a partition, all its files or its directory are lost",
        &["pipeline::damaged_store::each_file_of_a_store_is_lost_in_turn"],
    ),
    (
        "a file of records was cut or emptied, not the newest",
        &["pipeline::damaged_store::each_file_of_a_store_is_lost_in_turn"],
    ),
    (
        "the newest file of a partition was cut or emptied",
        &[
            "pipeline::damaged_store::each_file_of_a_store_is_lost_in_turn",
            "pipeline::faults::a_damaged_newest_file_is_found_and_read_again",
        ],
    ),
    (
        "bytes of a file changed on the disk",
        &["pipeline::damaged_store::a_bit_that_changed_is_told_by_every_command_and_never_written_anew"],
    ),
    (
        "bytes of a larger file changed, and the small files that it replaced are still there (`--grace`)",
        &["pipeline::damaged_compaction::small_files_stay_while_the_larger_one_is_damaged"],
    ),
    (
        "the file of members of a version that serves or was last sent to a topic is lost or damaged",
        &[
            "pipeline::damaged_members::a_lost_file_of_members_is_told_and_made_again",
            "models::members::a_bit_that_changed_is_told",
            "pipeline::damaged_members::members_that_were_sent_and_are_lost_are_sent_again_without_tombstones",
        ],
    ),
    ("`keys.json` is lost or damaged", &["http::guard::lost_or_damaged_keys_are_told_and_let_nobody_in"]),
    (
        "files in `tmp/` are deleted or cut while an ingest runs",
        &["pipeline::damaged_store::a_lost_scratch_file_holds_nothing_up"],
    ),
    (
        "the disk is full",
        &[
            "pipeline::faults::a_failing_fsync_and_a_full_disk_are_waited_out",
            "models::damaged_models::up_goes_on_where_its_first_training_finds_the_disk_full",
        ],
    ),
    ("the clock of the machine is wrong", &["pipeline::broker::a_clock_that_cannot_be_right_lets_nothing_expire"]),
    (
        "the topic was deleted and made again",
        &["pipeline::store_sources::a_topic_that_was_created_again_is_another_topic"],
    ),
    (
        "the store is ahead of its topic, which was cut or restored from a backup",
        &[
            "pipeline::damaged_store::a_store_ahead_of_its_topic_is_told_and_read_into_another",
            "pipeline::topic_restored::a_topic_that_is_restored_from_a_backup_while_it_is_read_ends_every_reader",
        ],
    ),
    (
        "records were gone from the topic before they were read",
        &[
            "pipeline::store_sources::a_gap_ends_up_as_well_until_it_is_accepted",
            "pipeline::mixed_ingest::a_worker_whose_only_partition_halted_goes_on_once_it_is_free",
        ],
    ),
    (
        "`up.lock` is deleted while an `up` runs",
        &["pipeline::store_sources::two_ups_after_the_lock_was_deleted_store_each_record_once"],
    ),
    (
        "another producer writes the headers `tercile-file` and `tercile-row`",
        &["pipeline::store_sources::forged_headers_make_a_replay_skip_the_row_that_they_name"],
    ),
    (
        "`--store` or `--sql` has a line break or another control character, or is no UTF-8",
        &["pipeline::damaged_store::a_path_that_queries_cannot_read_is_refused_at_once"],
    ),
];

/// The section "Damaged model files".
const MODELS: &[Row] = &[
    (
        "`<version>.json` that serves",
        &["models::damaged_models::damages", "models::damaged_models::up_starts_over_a_damaged_model_and_replaces_it"],
    ),
    ("`<version>.json` that does not serve", &["models::damaged_models::damages"]),
    ("`<version>.sample.parquet`", &["models::damaged_models::damages", "models::members::a_bit_that_changed_is_told"]),
    (
        "`<version>.members.parquet`",
        &[
            "models::members::damaged_members_are_reported_and_made_again",
            "models::members::a_bit_that_changed_is_told",
        ],
    ),
    (
        "`published.json`",
        &[
            "pipeline::members_topic::a_run_that_was_killed_is_made_good_by_the_next",
            "pipeline::damaged_members::members_that_were_sent_and_are_lost_are_sent_again_without_tombstones",
        ],
    ),
    (
        "`slices.json`",
        &["models::damaged_models::damages", "models::damaged_models::what_somebody_chose_survives_a_lost_list"],
    ),
    ("`served.ndjson`", &["models::damaged_models::damages"]),
];

/// The first cells of the first table of a section, without its head.
fn first_cells<'a>(page: &'a str, section: &str) -> Vec<&'a str> {
    let section = page.split_once(&format!("\n## {section}\n")).unwrap().1.split("\n## ").next().unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let rows = rows.take_while(|line| line.starts_with("| "));
    rows.map(|row| row[2..].split(" | ").next().unwrap()).collect()
}

#[test]
fn every_row_of_the_manual_about_damage_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    for (section, rows) in [("What can go wrong, and what to do", CASES), ("Damaged model files", MODELS)] {
        let listed: Vec<&str> = rows.iter().map(|(case, _)| *case).collect();
        assert_eq!(first_cells(&page, section), listed, "{section}: the manual, and the rows with tests");
        for test in rows.iter().flat_map(|(_, tests)| *tests) {
            let [binary, module, name] = test.split("::").collect::<Vec<_>>()[..] else { panic!("{test}") };
            let source = std::fs::read_to_string(root.join(format!("tests/{binary}/{module}.rs"))).unwrap();
            // A function with the attribute of tests, or a macro that makes one for each kind of damage.
            let ways = [
                format!("#[test]\nfn {name}() {{"),
                format!("#[tokio::test]\nasync fn {name}() {{"),
                format!("macro_rules! {name} {{"),
            ];
            assert!(ways.iter().any(|way| source.contains(way)), "{test} is no test");
        }
    }
}
