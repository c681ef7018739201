//! librdkafka settings passed through from users: `-X key=value` and properties files.

use std::fmt;
use std::path::Path;

use super::Error;

/// Settings on which the store's guarantees depend, or that have a flag of their own.
const OURS: [&str; 14] = [
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partition.assignment.strategy",
];

/// Settings that make librdkafka load a library or run a command, and so allow arbitrary code to run as this process.
const LOAD_CODE: [&str; 5] =
    ["plugin.library.paths", "ssl.engine.location", "ssl.engine.id", "ssl.providers", "sasl.kerberos.kinit.cmd"];

/// Whether settings may make librdkafka load libraries or run commands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Plugins {
    /// Such settings are errors.
    #[default]
    Refused,
    /// Such settings are passed through.
    Allowed,
}

/// Keys and values in the given order; later ones win.
#[derive(Clone, Default)]
pub struct Settings {
    pairs: Vec<(String, String)>,
    plugins: Plugins,
}

/// Shows keys only: values may be secrets.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.pairs.iter().map(|(key, _)| key)).finish()
    }
}

impl Settings {
    /// No settings.
    pub fn new(plugins: Plugins) -> Self {
        Self { pairs: Vec::new(), plugins }
    }

    /// Reads a file of `key=value` lines; lines that begin with `#` or `!` are comments. `${NAME}` is not expanded.
    ///
    /// # Errors
    /// If the file cannot be read, a line is not `key=value`, or a setting is refused by [`Settings::add`].
    pub fn read(path: &Path, plugins: Plugins) -> Result<Self, Error> {
        let fault = |why: String| Error::SettingsFile { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|e| fault(e.to_string()))?;
        let mut settings = Self::new(plugins);
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                return Err(fault(format!("line {} is no key=value", i + 1)));
            };
            settings.add(key.trim(), value.trim())?;
        }
        Ok(settings)
    }

    /// Adds a setting.
    ///
    /// # Errors
    /// If it is reserved for tercile, belongs to the Java client, or loads code and plugins are refused.
    pub fn add(&mut self, key: &str, value: &str) -> Result<(), Error> {
        let refused = |why: &str| Err(Error::Setting { key: key.to_owned(), why: why.to_owned() });
        match key {
            "sasl.jaas.config" => refused("is Java's; say sasl.username and sasl.password instead"),
            _ if key.starts_with("ssl.truststore") => refused("is Java's; say ssl.ca.location, a PEM file, instead"),
            _ if LOAD_CODE.contains(&key) && self.plugins == Plugins::Refused => {
                refused("has librdkafka load or run code; give --allow-plugins if that is meant")
            }
            _ if OURS.contains(&key) => refused("is tercile's own: it has a flag, or the store rests on it"),
            _ => {
                self.pairs.push((key.to_owned(), value.to_owned()));
                Ok(())
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(String, String)> {
        self.pairs.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_properties_file_is_read_and_its_faults_name_no_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.properties");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Settings::read(&path, Plugins::Refused)
        };
        let settings = read("# comment\n! too\n\nsecurity.protocol = SASL_SSL\nsasl.password=a=b#c\n").unwrap();
        let pairs: Vec<_> = settings.iter().cloned().collect();
        let expected = [("security.protocol", "SASL_SSL"), ("sasl.password", "a=b#c")];
        assert_eq!(pairs, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(format!("{settings:?}"), r#"["security.protocol", "sasl.password"]"#);
        assert!(read("secret").unwrap_err().to_string().ends_with("line 1 is no key=value"));
        let error = read("auto.offset.reset=earliest").unwrap_err().to_string();
        assert!(error.starts_with("the Kafka setting auto.offset.reset is tercile's own"), "{error}");
        let error = read("sasl.jaas.config=org.x required password=\"hush\";").unwrap_err().to_string();
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn code_is_loaded_only_where_that_is_allowed() {
        for key in LOAD_CODE {
            let error = Settings::new(Plugins::Refused).add(key, "/tmp/evil.so").unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("the Kafka setting {key} ")) && error.contains("--allow-plugins"),
                "{error}"
            );
            assert!(!error.contains("evil"), "{error}");
            Settings::new(Plugins::Allowed).add(key, "/usr/lib/good.so").unwrap();
        }
    }
}
