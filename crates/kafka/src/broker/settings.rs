//! librdkafka settings passed through from users: `-X key=value` and properties files.

use std::fmt;
use std::path::Path;

use rdkafka::config::ClientConfig;

use super::Error;

/// Settings on which the store's guarantees depend, or that have a flag of their own, and what applies instead.
const OURS: [(&str, &str); 18] = [
    ("acks", "a record counts as sent once all replicas have it"),
    ("allow.auto.create.topics", "a topic is made with --partitions"),
    ("auto.offset.reset", "a new store begins where --from says, and reading goes on where the store ends"),
    ("bootstrap.servers", "say --bootstrap-servers"),
    ("enable.auto.commit", "the store decides where reading goes on, and a commit is a hint"),
    ("enable.auto.offset.store", "the store decides where reading goes on, and a commit is a hint"),
    ("enable.idempotence", "the broker always drops what a retry sends twice"),
    ("enable.partition.eof", "the end of a partition is always asked for"),
    ("group.id", "say --group to share a topic"),
    ("group.instance.id", "say --instance-id"),
    ("group.protocol", "groups use the classic protocol"),
    ("isolation.level", "only committed records are read"),
    ("log_level", "say -v, and -X debug=… for more"),
    ("metadata.broker.list", "say --bootstrap-servers"),
    ("partition.assignment.strategy", "partitions are assigned cooperatively (cooperative-sticky)"),
    ("request.required.acks", "a record counts as sent once all replicas have it"),
    ("topic.blacklist", "the topic is named by --topic"),
    ("transactional.id", "only enrich has transactions, and --group and --instance-id name them"),
];

/// Values of these settings that are what tercile does anyway.
const SAME: [(&str, &[&str]); 6] = [
    ("acks", &["all", "-1"]),
    ("request.required.acks", &["all", "-1"]),
    ("enable.auto.commit", &["false"]),
    ("enable.auto.offset.store", &["false"]),
    ("enable.idempotence", &["true"]),
    ("isolation.level", &["read_committed"]),
];

/// Settings of the Java clients, and of a schema registry, that mean nothing here. A name that ends with a point stands for all
/// that begin with it.
const JAVA: [&str; 41] = [
    "auto.include.jmx.reporter",
    "auto.register.schemas",
    "basic.auth.",
    "bearer.auth.",
    "buffer.memory",
    "compression.gzip.level",
    "compression.lz4.level",
    "compression.zstd.level",
    "confluent.",
    "default.api.timeout.ms",
    "exclude.internal.topics",
    "fetch.max.wait.ms",
    "interceptor.classes",
    "key.deserializer",
    "key.serializer",
    "max.block.ms",
    "max.poll.records",
    "max.request.size",
    "metadata.max.idle.ms",
    "metric.reporters",
    "metrics.",
    "partitioner.",
    "receive.buffer.bytes",
    "sasl.client.callback.handler.class",
    "sasl.kerberos.ticket.",
    "sasl.login.",
    "schema.registry.",
    "security.providers",
    "send.buffer.bytes",
    "socket.connection.setup.timeout.max.ms",
    "specific.avro.reader",
    "ssl.enabled.protocols",
    "ssl.engine.factory.class",
    "ssl.keymanager.algorithm",
    "ssl.protocol",
    "ssl.provider",
    "ssl.secure.random.implementation",
    "ssl.trustmanager.algorithm",
    "use.latest.version",
    "value.deserializer",
    "value.serializer",
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
    /// `bootstrap.servers` of a file.
    servers: Option<String>,
    /// Settings of a file that are not used, each with the reason.
    unused: Vec<String>,
}

/// Shows keys only: values may be secrets.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.pairs.iter().map(|(key, _)| key)).finish()
    }
}

/// Key and value of a line as Java's `Properties` reads it: `key=value`, `key: value` or `key value`.
fn key_value(line: &str) -> Option<(&str, &str)> {
    let is_end = |c: char| c == '=' || c == ':' || c.is_whitespace();
    let (key, rest) = line.split_at(line.find(is_end)?);
    let rest = rest.trim_start();
    Some((key, rest.strip_prefix(['=', ':']).unwrap_or(rest).trim()))
}

impl Settings {
    /// No settings.
    pub fn new(plugins: Plugins) -> Self {
        Self { plugins, ..Self::default() }
    }

    /// Reads a file of `key=value` lines, such as the `client.properties` of the Java clients; lines that begin with `#` or `!` are
    /// comments, and a backslash at the end of a line continues it. `${NAME}` is not expanded.
    ///
    /// `bootstrap.servers` is kept, user and password are taken out of a `sasl.jaas.config` of PLAIN or SCRAM, and a truststore of
    /// the type PEM is `ssl.ca.location`. Settings that tercile makes itself are in [`Settings::unused`].
    ///
    /// # Errors
    /// If the file cannot be read, a line is not `key=value`, or a setting is refused by [`Settings::add`].
    pub fn read(path: &Path, plugins: Plugins) -> Result<Self, Error> {
        let fault = |why: String| Error::SettingsFile { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|e| fault(e.to_string()))?;
        let mut settings = Self::new(plugins);
        let (mut lines, mut pem) = (text.lines().enumerate(), false);
        let mut truststore = None;
        while let Some((i, line)) = lines.next() {
            let mut line = line.trim().to_owned();
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            while let Some(open) = line.strip_suffix('\\') {
                line = format!("{open}{}", lines.next().map_or("", |(_, next)| next.trim()));
            }
            let Some((key, value)) = key_value(&line) else {
                return Err(fault(format!("line {} is no key=value", i + 1)));
            };
            let same = SAME.iter().any(|(name, values)| *name == key && values.contains(&value));
            let java = |name: &&'static str| *name == key || name.ends_with('.') && key.starts_with(name);
            match key {
                "bootstrap.servers" | "metadata.broker.list" => settings.servers = Some(value.to_owned()),
                "sasl.jaas.config" => settings.add_login(value)?,
                // Java's way to switch the check of the host's name off.
                "ssl.endpoint.identification.algorithm" if value.is_empty() => settings.add(key, "none")?,
                "ssl.truststore.type" => pem = value.eq_ignore_ascii_case("PEM"),
                "ssl.truststore.location" => truststore = Some(value.to_owned()),
                _ if same => {}
                _ if JAVA.iter().any(java) => {
                    settings.unused.push(format!("{key} in {} is not used: it is Java's", path.display()));
                }
                _ => match OURS.iter().find(|(name, _)| *name == key) {
                    Some((_, instead)) => {
                        settings.unused.push(format!("{key} in {} is not used: {instead}", path.display()));
                    }
                    None => settings.add(key, value)?,
                },
            }
        }
        match truststore {
            Some(location) if pem => settings.add("ssl.ca.location", &location)?,
            Some(location) => settings.add("ssl.truststore.location", &location)?,
            None => {}
        }
        Ok(settings)
    }

    /// Adds user and password of a `sasl.jaas.config`, unless they were given by their own settings.
    fn add_login(&mut self, value: &str) -> Result<(), Error> {
        let module = value.split_whitespace().next().unwrap_or_default();
        let known = module.ends_with(".PlainLoginModule") || module.ends_with(".ScramLoginModule");
        let (user, password) = (option(value, "username"), option(value, "password"));
        let (true, Some(user), Some(password)) = (known, user, password) else {
            return self.add("sasl.jaas.config", value);
        };
        for (key, value) in [("sasl.username", user), ("sasl.password", password)] {
            if !self.pairs.iter().any(|(known, _)| known == key) {
                self.add(key, &value)?;
            }
        }
        Ok(())
    }

    /// The value of `bootstrap.servers` in the file, if there is one.
    pub fn servers(&self) -> Option<&str> {
        self.servers.as_deref()
    }

    /// The settings of the file that are not used, each as a sentence with the reason. It has no value, which may be a secret.
    pub fn unused(&self) -> &[String] {
        &self.unused
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
            _ => match OURS.iter().find(|(name, _)| *name == key) {
                Some((_, instead)) => refused(&format!("is tercile's own: {instead}")),
                None => {
                    self.pairs.push((key.to_owned(), value.to_owned()));
                    Ok(())
                }
            },
        }
    }

    /// Adds a setting of tercile's own.
    #[must_use]
    pub(super) fn with(mut self, key: &str, value: &str) -> Self {
        self.pairs.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(String, String)> {
        self.pairs.iter()
    }
}

/// The value of an option of a JAAS entry: `username="x"`. Within quotes a backslash stands before a quote or a backslash.
fn option(entry: &str, name: &str) -> Option<String> {
    let mut rest = entry;
    loop {
        let (before, after) = rest.split_once(name)?;
        let value = after.trim_start().strip_prefix('=').map(str::trim_start);
        let quote = value.and_then(|value| value.chars().next()).filter(|c| matches!(c, '"' | '\''));
        let (true, Some(value), Some(quote)) = (before.ends_with(char::is_whitespace), value, quote) else {
            rest = after;
            continue;
        };
        let (mut text, mut escaped) = (String::new(), false);
        for c in value.chars().skip(1) {
            match c {
                '\\' if !escaped => escaped = true,
                c if c == quote && !escaped => return Some(text),
                c => {
                    text.push(c);
                    escaped = false;
                }
            }
        }
        return None;
    }
}

/// Settings that librdkafka knows by two names.
const ALIASES: [(&str, &str); 4] = [
    ("compression.type", "compression.codec"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("message.timeout.ms", "delivery.timeout.ms"),
];

/// Sets defaults; settings given by the user (`-X`) win.
pub(super) fn set_missing(config: &mut ClientConfig, defaults: &[(&str, &str)]) {
    for &(key, value) in defaults {
        let alias = ALIASES.iter().find(|(name, _)| *name == key).and_then(|(_, alias)| config.get(alias));
        if config.get(key).is_none() && alias.is_none() {
            config.set(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_those_of_java() {
        for line in ["a.b=x:1", "a.b = x:1", "a.b: x:1", "a.b :x:1", "a.b x:1", "a.b\t=\tx:1"] {
            assert_eq!(key_value(line), Some(("a.b", "x:1")), "{line}");
        }
        assert_eq!(key_value("a.b="), Some(("a.b", "")));
        assert_eq!(key_value("a.b"), None);
    }

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
        let unused = read("auto.offset.reset=earliest").unwrap().unused().join("; ");
        assert!(
            unused.contains("auto.offset.reset in ") && unused.ends_with("reading goes on where the store ends"),
            "{unused}"
        );
        let error = read("sasl.jaas.config=org.x required password=\"hush\";").unwrap_err().to_string();
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn the_file_of_a_java_client_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.properties");
        let text = "bootstrap.servers=a:9092,b:9092\nsecurity.protocol=SASL_SSL\nsasl.mechanism=PLAIN\n\
                    sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\\n  \
                    username='K' password=\"a\\\\b=\\\"c\";\n\
                    acks=all\ngroup.id=orders\nsession.timeout.ms=45000\nkey.serializer=org.x.Y\nschema.registry.url=https://x\n\
                    ssl.truststore.location=/etc/ca.pem\nssl.truststore.type=PEM\n";
        std::fs::write(&path, text).unwrap();
        let settings = Settings::read(&path, Plugins::Refused).unwrap();
        assert_eq!(settings.servers(), Some("a:9092,b:9092"));
        let pairs: Vec<_> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let expected = [
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "K"),
            ("sasl.password", "a\\b=\"c"),
            ("session.timeout.ms", "45000"),
            ("ssl.ca.location", "/etc/ca.pem"),
        ];
        assert_eq!(pairs, expected);
        let unused = settings.unused();
        assert_eq!(unused.len(), 3, "{unused:?}");
        assert!(unused[0].starts_with("group.id in ") && unused[0].ends_with("say --group to share a topic"));
        let text = "ssl.endpoint.identification.algorithm=\nsasl.login.class : x\npartitioner.ignore.keys true\n\
                    transactional.id = tx\nclient.id: a\n";
        std::fs::write(&path, text).unwrap();
        let settings = Settings::read(&path, Plugins::Refused).unwrap();
        let pairs: Vec<_> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("ssl.endpoint.identification.algorithm", "none"), ("client.id", "a")]);
        let unused = settings.unused().join("; ");
        assert!(unused.contains("sasl.login.class in ") && unused.contains("partitioner.ignore.keys in "), "{unused}");
        assert!(
            unused.contains("transactional.id in ") && unused.ends_with("--group and --instance-id name them"),
            "{unused}"
        );
        std::fs::write(&path, "ssl.truststore.location=/a.jks\nacks=1\n").unwrap();
        let error = Settings::read(&path, Plugins::Refused).unwrap_err().to_string();
        assert!(error.contains("ssl.ca.location, a PEM file"), "{error}");
    }

    #[test]
    fn a_setting_with_a_flag_is_refused_by_name() {
        for (key, instead) in OURS {
            let error = Settings::default().add(key, "1").unwrap_err().to_string();
            assert_eq!(error, format!("the Kafka setting {key} is tercile's own: {instead}"));
        }
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
