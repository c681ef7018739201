//! Completions in real shells, manual pages and the manual, all from the definition of the command line.

use std::process::{Command, Stdio};

use common::Place;

use crate::common;

/// A directory with another shop: SQL files in `shop`, and a trained store that `tercile.toml` names.
fn shop() -> Place {
    let place = Place::new();
    place.write("rows.csv", "id,spent\na,1\nb,2\nc,30\nd,31\ne,400\nf,410\n");
    place.ok(&["init", "rows.csv", "--sql", "shop"]);
    place.write("shop/30_loyalty.sql", "-- k: 2\nSELECT _partition, _offset, _timestamp, _slice, spent FROM slices\n");
    place.write("tercile.toml", "store = 'kept'\n");
    place
}

fn has(shell: &str) -> bool {
    let there =
        Command::new(shell).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !there {
        eprintln!("skipped: there is no {shell}");
    }
    there
}

/// Runs a script with a shell, with `$TERCILE` as the program.
fn run(place: &Place, shell: &[&str], script: &str) -> String {
    let ours = place.command(&[]);
    let mut command = Command::new("timeout");
    command.arg("60").args(shell).arg(place.write("script", script)).current_dir(place.dir.path());
    command.env("TERCILE", ours.get_program()).env("TERM", "xterm").env("HOME", place.dir.path());
    let output = command.output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{wrong}");
    said.into_owned()
}

#[test]
fn bash_completes_commands_flags_values_segmentations_and_files() {
    if !has("bash") {
        return;
    }
    let place = shop();
    let complete = |line: &str| {
        let script = "source <($TERCILE completions bash)\n\
             words=(LINE)\n\
             COMP_WORDS=(\"${words[@]}\"); COMP_CWORD=$((${#words[@]} - 1)); COMP_TYPE=9\n\
             function=$(complete -p tercile | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n\
             $function tercile \"${words[-1]}\" \"${words[-2]}\"\n\
             printf '%s\\n' \"${COMPREPLY[@]}\"\n";
        let said = run(&place, &["bash", "--norc"], &script.replace("LINE", line));
        said.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(complete("tercile sug"), ["suggest-k"]);
    assert_eq!(complete("tercile up --retrain"), ["--retrain-every"]);
    assert_eq!(complete("tercile --log-format ''"), ["text", "json"]);
    assert_eq!(complete("tercile predict price"), ["price_rating"]);
    // The SQL files of the unfinished line, of the environment and of the configuration file decide.
    assert_eq!(complete("tercile predict --sql shop ''")[..1], ["loyalty"]);
    place.write("tercile.toml", "sql = 'shop'\n");
    assert_eq!(complete("tercile predict ''")[..1], ["loyalty"]);
    assert_eq!(complete("tercile predict loyalty row"), ["rows.csv"]);
    assert_eq!(complete("tercile fit --json row"), ["rows.csv"]);
    // Processes of the program are not for users.
    assert!(!complete("tercile ''").iter().any(|name| name.contains("worker") || name.contains("session")));
    // A wrong file of settings does not disturb.
    place.write("tercile.toml", "nonsense");
    assert_eq!(complete("tercile predict price"), ["price_rating"]);
}

#[test]
fn zsh_completes_at_its_prompt() {
    if !has("zsh") {
        return;
    }
    let place = shop();
    // The function takes the place of the program when the line is run; the completions call the program by its path.
    let script = "zmodload zsh/zpty\n\
         zpty shell zsh -f -i\n\
         zpty -w shell 'PS1=REA\"\"DY; autoload -U compinit; compinit -D -u; source <($TERCILE completions zsh); \
             tercile() { print -r -- $@ >>lines }'\n\
         zpty -r shell seen '*READY'\n\
         for line in sug 'up --retrain' 'predict --sql shop loy' 'fit row'; do\n\
             zpty -w -n shell \"tercile $line\"$'\\t\\r'\n\
         done\n\
         zpty -w shell 'print -r FIN\"\"ISHED'\n\
         zpty -r shell seen '*FINISHED'\n\
         zpty -d shell\n\
         cat lines\n";
    let said = run(&place, &["zsh", "-f"], script);
    let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
    assert_eq!(lines, ["suggest-k", "up --retrain-every", "predict --sql shop loyalty", "fit rows.csv"]);
}

#[test]
fn fish_completes_models_with_slices_and_versions() {
    if !has("fish") {
        return;
    }
    let place = shop();
    let complete = |line: &str| {
        let script = format!("$TERCILE completions fish | source\ncomplete -C {line:?}\n");
        let said = run(&place, &["fish", "--no-config"], &script);
        said.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(complete("tercile sug"), ["suggest-k"]);
    assert_eq!(complete("tercile predict --sql shop lo"), ["loyalty"]);
    assert!(complete("tercile verify loy").is_empty(), "nothing is trained");
    let running = place.up(&["--sql", "shop", "--data", "rows.csv", "--topic", "customers"]);
    running.interrupt();
    assert_eq!(complete("tercile verify loy"), ["loyalty"]);
    assert_eq!(complete("tercile models diff loyalty@"), ["loyalty@1", "loyalty@2", "loyalty@3"]);
    assert_eq!(complete("tercile model show loyalty@3@"), ["loyalty@3@3"]);
    assert!(complete("tercile model show ../kept@3@").is_empty());
}

#[test]
fn an_unknown_shell_or_command_is_a_usage_error() {
    let place = Place::new();
    let ended = place.run(&["completions", "tcsh"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("bash") && ended.stderr.contains("fish"), "{}", ended.stderr);
    let error = place.fails(2, &["man", "models", "rolback"]);
    assert!(error.contains("there is no command tercile models rolback"), "{error}");
    place.fails(2, &["man", "train-worker"]);
    let error = place.fails(2, &["docs", "trian"]);
    assert!(error.contains("did you mean train?"), "{error}");
}

#[test]
fn man_formats_the_page_of_every_command() {
    let place = Place::new();
    let page = place.ok(&["man", "models", "rollback"]);
    assert!(page.contains("tercile\\-models\\-rollback") && page.contains("\\-\\-store"), "{page}");
    let help = place.ok(&["--help"]);
    let commands = help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap().lines();
    let commands: Vec<&str> = commands
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() > 20 && commands.contains(&"up"));
    let man = has("man");
    for command in commands {
        let file = place.write(&format!("tercile-{command}.1"), place.ok(&["man", command]));
        if !man {
            continue;
        }
        let output = Command::new("man").args(["--warnings", "-l"]).arg(&file).env("MANPAGER", "cat").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("NAME") && text.contains("SYNOPSIS"), "{command}: {text}");
        assert!(output.stderr.is_empty(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn docs_prints_the_row_the_flags_and_the_page_of_a_command() {
    let place = Place::new();
    let train = place.ok(&["docs", "train"]);
    for part in ["# tercile train\n\ntrains every segmentation", "--keep-members <N>", "\n# Models\n"] {
        assert!(train.contains(part), "{part}: {train}");
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = |name: &str| std::fs::read_to_string(root.join("docs").join(name)).unwrap();
    assert_eq!(place.ok(&["docs", "your-data"]), file("your-data.md"));
    assert_eq!(place.ok(&["docs"]), file("README.md"));
    assert!(place.ok(&["docs", "up"]).contains("--from latest|TIME"), "a bar is not escaped");
}
