//! `tercile.toml`: which value applies, what is rejected and where, and what does not depend on it.

use common::Place;

use crate::common;

/// The seed that `generate` used, told by its rows.
fn seed(place: &Place, args: &[&str], env: Option<&str>) -> u32 {
    let mut command = place.command(&[&["generate", "3"], args].concat());
    command.envs(env.map(|seed| ("TERCILE_SEED", seed)));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let empty = Place::new();
    let rows = |seed: u32| empty.ok(&["generate", "3", "--seed", &seed.to_string()]).into_bytes();
    (1..50).find(|&seed| rows(seed) == output.stdout).unwrap()
}

#[test]
fn a_flag_precedes_the_environment_the_file_and_the_default() {
    let place = Place::new();
    assert_eq!(seed(&place, &[], None), 42);
    place.write("tercile.toml", "seed = 3\n");
    assert_eq!(seed(&place, &[], None), 3);
    assert_eq!(seed(&place, &[], Some("2")), 2);
    assert_eq!(seed(&place, &["--seed", "1"], Some("2")), 1);
    assert_eq!(seed(&place, &["--seed", "1"], None), 1);
    // The table of the command comes before the values of all commands, wherever it is in the file.
    place.write("tercile.toml", "commands.generate.seed = 4\nseed = 3\n");
    assert_eq!(seed(&place, &[], None), 4);
    place.write("tercile.toml", "seed = 3\n[commands.sql]\nmin-k = 4\n");
    let error = place.fails(2, &["generate", "3"]);
    assert!(error.contains("tercile.toml, line 3: tercile sql has no flag --min-k"), "{error}");
}

#[test]
fn another_file_is_named_by_flag_or_environment() {
    let place = Place::new();
    place.write("tercile.toml", "seed = 3\n");
    place.write("other.toml", "seed = 5\n");
    assert_eq!(seed(&place, &["--config", "other.toml"], None), 5);
    assert_eq!(seed(&place, &["--config", "/dev/null"], None), 42);
    let output = place.command(&["generate", "3"]).env("TERCILE_CONFIG", "other.toml").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), place.ok(&["generate", "3", "--seed", "5"]));
    for (args, env) in
        [(&["--config", "none.toml", "generate", "3"][..], None), (&["generate", "3"], Some("none.toml"))]
    {
        let output = place.command(args).envs(env.map(|file| ("TERCILE_CONFIG", file))).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
        assert_eq!(error, "error: there is no file none.toml; name an existing one with --config\n");
    }
    // Only the file of the working directory is read, not one above it.
    std::fs::create_dir(place.path("inner")).unwrap();
    let output = place.command(&["generate", "3"]).current_dir(place.path("inner")).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), Place::new().ok(&["generate", "3"]));
    // A file that is there but cannot be read is not the same as none.
    std::fs::remove_file(place.path("tercile.toml")).unwrap();
    std::fs::create_dir(place.path("tercile.toml")).unwrap();
    let error = place.fails(2, &["generate", "3"]);
    assert!(error.contains("cannot read tercile.toml"), "{error}");
}

#[test]
fn a_fault_is_one_line_with_file_and_line() {
    let place = Place::new();
    let up = &["up", "--bind", "127.0.0.1:0"][..];
    let cases = [
        ("sede = 1\n", "line 1: no command has a flag --sede; did you mean seed?"),
        ("\n# x\nbatch_rows = 1\n", "line 3: no command has a flag --batch_rows; did you mean batch-rows?"),
        (
            "up = { key = 'a' }\n",
            "line 1: no command has a flag --up; the flags of the command are below [commands.up]",
        ),
        ("[commands.upp]\n", "line 1: there is no command upp; did you mean up?"),
        ("[commands.replay]\n", "line 1: there is no command replay; here it is called reprocess"),
        ("[commands.sql-session]\n", "line 1: there is no command sql-session"),
        ("[commands]\nup = 1\n", "line 2: expected a table [commands.up]"),
        ("[commands.up]\nseed = 1\n", "line 2: tercile up has no flag --seed"),
        ("[commands.models.rolback]\nstore = 'x'\n", "line 1: tercile models has no flag --rolback"),
        ("store = \n", "line 1: "),
        ("store = 'a'\nstore = 'b'\n", "line 2: duplicate key"),
        ("open = 'yes'\n", "line 1: open: expected true or false, found a single value"),
        ("topic = true\n", "line 1: topic: expected a string or a number, found a boolean"),
        ("topic = ['a', 'b']\n", "line 1: topic: tercile up expects a string or a number, found a list"),
        ("allowed-host = [['a']]\n", "line 1: allowed-host: expected a string, a number, a boolean, or a list"),
        ("store = { a = 1 }\n", "line 1: store: expected a string"),
        ("\nbatch-rows = 0\n", "line 2: invalid value '0' for '--batch-rows <N>': 0 is not in 1..=10000000"),
        ("topic = 'a/b'\n", "line 1: invalid value 'a/b' for '--topic <NAME>': a topic's name has"),
        (
            "log-format = 'xml'\n",
            "line 1: invalid value 'xml' for '--log-format <FORMAT>' [possible values: text, json]",
        ),
        ("store = ''\n", "line 1: "),
        ("open = true\nrequire-keys = true\n", "the argument '--open' cannot be used with '--require-keys'"),
        ("tls-cert = 'a.pem'\n", "line 1: the following required arguments were not provided: --tls-key <FILE>"),
        ("config = 'x'\n", "line 1: config: a file cannot name another one"),
        ("output = 'x'\n", "line 1: output: a file does not decide which files are written"),
        ("allow-plugins = true\n", "line 1: allow-plugins: loading libraries is not allowed by a file"),
        ("help = true\n", "line 1: no command has a flag --help"),
        ("\"\\u001b[2J\" = 1\n", "line 1: no command has a flag"),
    ];
    for (content, expected) in cases {
        place.write("tercile.toml", content);
        let ended = place.run(up);
        assert_eq!(ended.code, Some(2), "{content}: {}", ended.stderr);
        let lines: Vec<&str> = ended.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{content}: {}", ended.stderr);
        assert!(lines[0].starts_with("error: tercile.toml, line "), "{content}: {}", lines[0]);
        assert!(lines[0].contains(expected) && !lines[0].contains('\u{1b}'), "{content}: {}", lines[0]);
        assert!(!place.path("store").exists() && !place.path("x").exists());
    }
    place.write("tercile.toml", b"store = '\xff'\n");
    let error = place.fails(2, up);
    assert!(error.contains("cannot read tercile.toml: stream did not contain valid UTF-8"), "{error}");
}

#[test]
fn a_wrong_file_does_not_stop_what_needs_none() {
    let place = Place::new();
    place.write("tercile.toml", "nonsense\n");
    for args in [
        &["completions", "bash"][..],
        &["man"],
        &["man", "models", "rollback"],
        &["docs"],
        &["--version"],
        &["--help"],
        &["up", "--help"],
        &["models", "rollback", "-h"],
        &[],
    ] {
        let ended = place.run(args);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
    // The user's own fault is named first.
    for args in [&["generate", "3"][..], &["openapi"], &["doctor"]] {
        let error = place.fails(2, args);
        assert!(error.contains("tercile.toml, line 1"), "{error}");
    }
    place.write("tercile.toml", "seed = 3\nstore = 'shop'\n");
    for args in [&["generate", "--sede", "3"][..], &["generate", "3", "--seed", "x"], &["frobnicate"]] {
        let (ended, without) = (place.run(args), Place::new().run(args));
        assert_eq!((ended.code, &ended.stderr), (Some(2), &without.stderr), "{args:?}");
    }
}

#[test]
fn a_value_gives_way_to_a_flag_that_excludes_it() {
    let place = Place::new();
    // `--group` and `--until-end` exclude each other.
    place.write(
        "tercile.toml",
        "bootstrap-servers = '127.0.0.1:1'\nbroker-timeout = 0.2\n[commands.ingest]\ngroup = 'g'\ninstance-id = 'i'\n",
    );
    let ended = place.run(&["ingest", "--until-end"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("no answer from a broker at 127.0.0.1:1 within 0.2s"), "{}", ended.stderr);
    let said = "tercile.toml, line 4: group does not apply beside the given flags\n";
    assert!(ended.stderr.starts_with(said), "{}", ended.stderr);
    // The required flag is in the file, which the environment overrides.
    let output = place.command(&["ingest"]).env("TERCILE_BOOTSTRAP_SERVERS", "127.0.0.1:2").output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("no answer from a broker at 127.0.0.1:2"));
    // One query at most: -c excludes the files of `sql`, which are a group.
    place.write("tercile.toml", "[commands.sql]\ncommand = 'SELECT 7 AS seven'\nformat = 'csv'\n");
    assert_eq!(place.ok(&["sql"]), "seven\n7\n");
    assert_eq!(place.ok(&["sql", "-c", "SELECT 8 AS eight"]), "eight\n8\n");
    place.write("q.sql", "SELECT 9 AS nine");
    assert_eq!(place.ok(&["sql", "q.sql"]), "nine\n9\n");
    // A flag of the file can be turned off.
    place.write("tercile.toml", "[commands.serve]\nrequire-keys = true\n");
    let error = place.fails(1, &["serve", "--bind", "127.0.0.1:0"]);
    assert!(error.contains("asks for keys"), "{error}");
    let mut command = place.command(&["serve", "--bind", "127.0.0.1:0"]);
    command.env("TERCILE_REQUIRE_KEYS", "false");
    let running = place.start_command(command, "serve");
    running.said("documented at ");
}

#[test]
fn lists_booleans_and_inner_commands_have_their_values() {
    let place = Place::new();
    let toml = "store = 'shop'\nallowed-host = ['a.example', 'b.example']\nenable-sql = true\nretrain-every = 60\n\
                [commands.up]\nenable-sql = false\n[commands.models.diff]\nstore = 'inner'\n[commands.keys]\nstore = 'keyed'\n";
    place.write("tercile.toml", toml);
    // Each command opens the store of its own table; text that looks like a command or a flag is no place for arguments.
    let error = place.fails(1, &["models", "diff", "a@1", "a@2"]);
    assert!(error.contains("inner"), "{error}");
    let error = place.fails(1, &["-q", "--log-format", "text", "verify", "--", "verify"]);
    assert!(error.contains("there is no store at shop"), "{error}");
    place.ok(&["keys", "create", "ada", "--scope", "read"]);
    assert!(place.path("keyed").exists() && !place.path("shop").exists());
    // `--na` takes any text.
    place.write("tercile.toml", "sql = 'written'\n");
    place.write("a.csv", "a,b\n1,--\n2,3\n");
    place.ok(&["init", "a.csv", "--na", "--"]);
    assert!(place.path("written").exists());
    let up = Place::new();
    up.write("tercile.toml", toml);
    let running = up.up(&[]);
    let status = |host: &str| {
        let url = format!("{}/api/status", running.address);
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        agent.get(&url).header("Host", host).call().unwrap().status().as_u16()
    };
    assert_eq!(["a.example", "b.example", "c.example"].map(status), [200, 200, 403]);
    assert!(up.path("shop").exists());
}

#[test]
fn the_shell_of_sql_and_messages_have_the_values_too() {
    use std::io::Write as _;
    let place = Place::new();
    place.write("tercile.toml", "[commands.sql]\nformat = 'csv'\nstore = 'shop'\n");
    let mut child = place
        .command(&["sql"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"SELECT 1 AS a, 2 AS b;\n").unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), "a,b\n1,2\n");
    place.write("tercile.toml", "store = 'our shop'\n");
    std::fs::create_dir(place.path("our shop")).unwrap();
    let ended = place.run(&["models"]);
    assert!(!ended.stderr.contains("tercile train") || ended.stderr.contains("--store 'our shop'"), "{}", ended.stderr);
}

#[test]
fn the_doctor_tells_where_each_value_is_from() {
    let place = Place::new();
    place.write("tercile.toml", "topic = 'orders'\nbind = '127.0.0.1:0'\n[commands.up]\nkey = 'id'\n");
    let mut command = place.command(&["doctor", "--partitions", "2", "-X", "sasl.password=hidden"]);
    let output = command.env("TERCILE_STORE", "shop").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "ok    config      tercile.toml: 3 values, accepted by their commands",
        "--topic orders (tercile.toml, line 1)",
        "--bind 127.0.0.1:0 (tercile.toml, line 2)",
        "--partitions 2 (command line)",
        "--store shop (environment, TERCILE_STORE)",
        "-X sasl.password (command line)",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(!said.contains("hidden") && !said.contains("--sql") && !said.contains("--key"), "{said}");
    // Values of other commands are checked here, too.
    place.write(
        "tercile.toml",
        "bind = '127.0.0.1:0'\n[commands.train]\nsolver = 'spark'\n[commands.fit]\nk = 'many'\n",
    );
    let ended = place.run(&["doctor"]);
    assert_eq!(ended.code, Some(1));
    let faults: Vec<&str> = ended.stdout.lines().filter(|line| line.starts_with("MEND  config")).collect();
    assert_eq!(faults.len(), 2, "{}", ended.stdout);
    assert!(faults.iter().any(|line| line.contains("line 3: invalid value 'spark' for '--solver")), "{faults:?}");
}
