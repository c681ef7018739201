//! API keys and their scopes.
//!
//! Input: the store's `keys.json`, which `tercile keys` writes. Output: name and scope of a request's key. The file contains
//! only hashes; a key is shown once, when it is created. A key is 256 random bits, so plain SHA-256 suffices: slow, salted
//! hashes protect guessable passwords.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tercile_store::times;
use tercile_store::{self as store, FileFault, Reason, Revision, Store};

/// Prefix of every key, recognisable by people and secret scanners.
const PREFIX: &str = "tercile_";
/// Polling interval of a running server for new and revoked keys, which take effect within a second; on an object store within the
/// interval of [`Store::generation`].
const INTERVAL: Duration = Duration::from_millis(250);

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Predictions, segments, models, metrics
    Read,
    /// The keys and features of entities, and what read allows
    Members,
    /// Trainings, and what read allows
    Train,
    /// Everything: pins, rollbacks, SQL
    Admin,
}

impl Scope {
    /// True if a key of this scope may do what needs the other.
    pub fn includes(self, other: Self) -> bool {
        self == other || self == Self::Admin || other == Self::Read
    }

    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Members => "members",
            Self::Train => "train",
            Self::Admin => "admin",
        }
    }
}

/// A key as stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Key {
    pub name: String,
    pub scope: Scope,
    /// SHA-256 of the key, in hex.
    hash: String,
    pub created_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

impl Key {
    /// Whether the key has expired. An unparsable expiry counts as expired.
    pub fn expired(&self) -> bool {
        let end = |text: &String| DateTime::parse_from_rfc3339(text).map_or(DateTime::UNIX_EPOCH, |end| end.to_utc());
        self.expires_at.as_ref().map(end).is_some_and(|end| end <= times::now())
    }
}

/// Content of `keys.json`.
#[derive(Default, Serialize, Deserialize)]
struct Content {
    keys: Vec<Key>,
    /// Whether the mark that shows a loss of this file was written, too. Earlier builds had none.
    #[serde(default)]
    marked: bool,
}

/// Error of reading or changing keys.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("a key's name has 1 to 64 of the characters a-z A-Z 0-9 . _ -, not {0:?}")]
    Name(String),
    #[error("there is a key {0} already; revoke it first, or choose another name")]
    Taken(String),
    #[error("there is no key {0}; tercile keys list shows all")]
    Unknown(String),
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

fn path(store: &Store) -> PathBuf {
    store.root().join("keys.json")
}

/// The error for keys that cannot be read.
fn fault(path: PathBuf, reason: Reason, why: impl Into<String>) -> store::Error {
    store::Error::File(Box::new(FileFault {
        path,
        kind: "the file of API keys",
        reason,
        why: why.into(),
        advice: "bring it back from a copy; or delete marks/keys and what is left of keys.json, and make new keys with tercile \
                 keys create",
    }))
}

fn read(store: &Store) -> Result<(Content, Revision), store::Error> {
    let path = path(store);
    let read = store.place().read_revision(&path);
    let (bytes, revision) = read.map_err(|e| fault(path.clone(), FileFault::reason_of(&e), e.to_string()))?;
    let content = match bytes {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| fault(path, Reason::Damaged, e.to_string()))?,
        None if store.is_marked_for_keys()? => return Err(fault(path, Reason::Missing, "")),
        None => Content::default(),
    };
    Ok((content, revision))
}

/// Checks the file of keys and its mark. Returns the number of keys.
///
/// # Errors
/// The fault, with advice.
pub fn check(store: &Store) -> Result<usize, String> {
    let content = read(store).map_err(|e| e.to_string())?.0;
    if content.marked && !store.is_marked_for_keys().map_err(|e| e.to_string())? {
        let mark = store.keys_mark();
        return Err(format!("{} is missing; the next keys create or keys revoke writes it anew", mark.display()));
    }
    Ok(content.keys.len())
}

/// Changes the keys under the store's lock.
fn change<T>(store: &Store, change: impl FnOnce(&mut Content) -> Result<T, Error>) -> Result<T, Error> {
    let _alone = store.lock_keys()?;
    let (mut content, revision) = read(store)?;
    let result = change(&mut content)?;
    content.marked = true;
    let mut text = serde_json::to_vec_pretty(&content).unwrap_or_default();
    text.push(b'\n');
    // A conditional replacement, because a lock on an object store can be lost.
    if !store.replace_secret_if(&text, &path(store), &revision)? {
        return Err(store::Error::Changed { path: path(store) }.into());
    }
    store.note_change();
    if let Err(error) = store.mark_for_keys() {
        tracing::warn!("a loss of the keys would not be noticed: {error}");
    }
    Ok(result)
}

/// All keys in order of creation.
pub fn list(store: &Store) -> Result<Vec<Key>, Error> {
    Ok(read(store)?.0.keys)
}

/// Creates a key and returns it. It cannot be retrieved later.
///
/// # Errors
/// If the name is invalid or taken, or if the store cannot be written.
pub fn create(store: &Store, name: &str, scope: Scope, lifetime: Option<TimeDelta>) -> Result<String, Error> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fine) {
        return Err(Error::Name(name.to_owned()));
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(Error::Random)?;
    let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
    let at = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let now = times::now();
    change(store, |content| {
        if content.keys.iter().any(|known| known.name == name) {
            return Err(Error::Taken(name.to_owned()));
        }
        content.keys.push(Key {
            name: name.to_owned(),
            scope,
            hash: hex(&hash(&key)),
            created_at: at(now),
            expires_at: lifetime.map(|lifetime| at(now + lifetime)),
        });
        Ok(())
    })?;
    Ok(key)
}

/// Revokes a key.
///
/// # Errors
/// If there is no such key, or if the store cannot be written.
pub fn revoke(store: &Store, name: &str) -> Result<(), Error> {
    change(store, |content| {
        let before = content.keys.len();
        content.keys.retain(|key| key.name != name);
        if content.keys.len() == before { Err(Error::Unknown(name.to_owned())) } else { Ok(()) }
    })
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keys of a running server.
pub struct Keys {
    store: Store,
    now: RwLock<Arc<Vec<Key>>>,
}

impl Keys {
    pub fn open(store: &Store) -> Result<Self, Error> {
        Ok(Self { store: store.clone(), now: RwLock::new(Arc::new(list(store)?)) })
    }

    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    fn all(&self) -> Arc<Vec<Key>> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The stored key that matches the presented one. Hashes are compared in constant time and all of them, so that timing
    /// reveals nothing.
    pub fn find(&self, presented: &str) -> Option<Key> {
        let presented = hex(&hash(presented));
        let mut found = None;
        for key in self.all().iter() {
            if bool::from(key.hash.as_bytes().ct_eq(presented.as_bytes())) {
                found = Some(key.clone());
            }
        }
        found.filter(|key| !key.expired())
    }

    /// Follows changes by `tercile keys`, for the lifetime of the server.
    pub async fn watch(self: Arc<Self>) {
        let (mut seen, mut generation) = (self.stamp(), self.store.generation());
        // Why the keys could not be read last time, if so.
        let mut failed: Option<String> = None;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = self.store.generation();
            if failed.is_none() && now.is_some() && now == generation {
                continue;
            }
            generation = now;
            let stamp = self.stamp();
            if failed.is_none() && stamp == seen {
                continue;
            }
            seen = stamp;
            let keys = match list(&self.store) {
                Ok(keys) => {
                    failed = None;
                    keys
                }
                // A revoked key must not stay valid because the file cannot be read. It is read again until it can be: the reason may
                // pass without a change of the file.
                Err(error) => {
                    let why = error.to_string();
                    if failed.as_ref() != Some(&why) {
                        tracing::error!("no key is accepted until they can be read: {why}");
                    }
                    failed = Some(why);
                    Vec::new()
                }
            };
            match (keys.is_empty(), self.all().is_empty()) {
                (true, false) => tracing::warn!("there are no keys any more: whatever needs one is refused"),
                (false, true) => tracing::info!("there are keys again"),
                _ => {}
            }
            *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        }
    }

    /// Fingerprint of the file: every change replaces the file.
    fn stamp(&self) -> Option<Vec<u8>> {
        if !self.store.place().is_disk() {
            return self.store.place().stamp(&path(&self.store)).ok();
        }
        let meta = fs::metadata(path(&self.store)).ok()?;
        Some([meta.ino(), meta.mtime_nsec().cast_unsigned(), meta.len()].map(u64::to_ne_bytes).concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_until_it_is_revoked_or_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let shop = create(&store, "shop", Scope::Read, None).unwrap();
        let past = create(&store, "past", Scope::Admin, Some(TimeDelta::seconds(-1))).unwrap();
        assert!(matches!(create(&store, "shop", Scope::Read, None), Err(Error::Taken(_))));
        for name in ["", "../x", "a b", &"x".repeat(65)] {
            assert!(matches!(create(&store, name, Scope::Read, None), Err(Error::Name(_))), "{name}");
        }
        let keys = Keys::open(&store).unwrap();
        assert_eq!(keys.find(&shop).unwrap().name, "shop");
        for wrong in [past.as_str(), "", PREFIX, &shop[1..], &format!("{shop} "), &shop.to_uppercase()] {
            assert!(keys.find(wrong).is_none(), "{wrong}");
        }
        let file = fs::read_to_string(path(&store)).unwrap();
        assert!(!file.contains(&shop[PREFIX.len()..]), "{file}");
        assert_eq!(fs::metadata(path(&store)).unwrap().mode() & 0o777, 0o600);
        revoke(&store, "shop").unwrap();
        assert!(matches!(revoke(&store, "shop"), Err(Error::Unknown(_))));
        assert!(Keys::open(&store).unwrap().find(&shop).is_none());
    }

    #[test]
    fn a_scope_includes_those_before_it() {
        use Scope::{Admin, Members, Read, Train};
        let includes = [(Read, vec![Read]), (Members, vec![Read, Members]), (Train, vec![Read, Train])];
        for (scope, allowed) in includes.into_iter().chain([(Admin, vec![Read, Members, Train, Admin])]) {
            for other in [Read, Members, Train, Admin] {
                assert_eq!(scope.includes(other), allowed.contains(&other), "{scope:?}, {other:?}");
            }
        }
    }

    #[tokio::test]
    async fn keys_that_could_not_be_read_are_read_again_without_a_change_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = create(&store, "shop", Scope::Read, None).unwrap();
        let keys = Arc::new(Keys::open(&store).unwrap());
        let watch = tokio::spawn(Arc::clone(&keys).watch());
        let becomes = async |found: bool| {
            for _ in 0..200 {
                if keys.find(&key).is_some() == found {
                    return;
                }
                tokio::time::sleep(INTERVAL / 4).await;
            }
            panic!("the key is {}", if found { "not found again" } else { "still found" });
        };
        // Let the watch see the file as it is.
        tokio::time::sleep(INTERVAL * 2).await;
        let good = fs::read(path(&store)).unwrap();
        fs::write(path(&store), vec![b'x'; good.len()]).unwrap();
        let stamp = keys.stamp();
        let modified = fs::metadata(path(&store)).unwrap().modified().unwrap();
        becomes(false).await;
        fs::write(path(&store), good).unwrap();
        fs::File::options().write(true).open(path(&store)).unwrap().set_modified(modified).unwrap();
        assert_eq!(keys.stamp(), stamp);
        becomes(true).await;
        watch.abort();
    }
}
