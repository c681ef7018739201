//! The queue of a receiver: a directory of messages that were not taken yet, in the store.
//!
//! ```text
//! store/notifications/<hash of the URL>/<milliseconds>-<id>-<state>.json    a message: the event as JSON
//! store/notifications/episodes/<key>.json                                   an open episode (episodes.rs)
//! ```
//!
//! A message is published whole, and deleted when the receiver took it. Names sort by time. The directory has a lease: only its
//! holder sends from it. All backends of a store have what this needs.

use std::io;
use std::path::PathBuf;

use tercile_store::{Error, Held, Store};

use super::event::Event;

/// The directory of the queues.
pub fn root(store: &Store) -> PathBuf {
    store.root().join("notifications")
}

/// Messages that receivers did not take yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Waiting {
    pub messages: usize,
    /// When the oldest was made, in milliseconds since 1970.
    pub oldest: i64,
}

/// The messages in the queues of a store; `None` if there are none.
///
/// # Errors
/// If a directory cannot be read.
pub fn waiting(store: &Store) -> Result<Option<Waiting>, Error> {
    let root = root(store);
    let mut made = Vec::new();
    for directory in store.place().dirs(&root).map_err(Error::io("list", &root))? {
        made.extend(Queue::new(store, &directory).names()?.into_iter().map(|name| name.made));
    }
    Ok(made.iter().min().map(|&oldest| Waiting { messages: made.len(), oldest }))
}

/// The queue of one receiver.
#[derive(Debug, Clone)]
pub struct Queue {
    store: Store,
    dir: PathBuf,
}

/// The name of a message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// When it was made, in milliseconds since 1970.
    pub made: i64,
    pub id: String,
    state: String,
}

impl Name {
    pub fn of(event: &Event, made: i64) -> Self {
        Self { made, id: event.id.clone(), state: event.state.name().to_owned() }
    }

    fn file(&self) -> String {
        format!("{:013}-{}-{}.json", self.made, self.id, self.state)
    }

    fn parse(file: &str) -> Option<Self> {
        let (made, rest) = file.strip_suffix(".json")?.split_once('-')?;
        let (id, state) = rest.rsplit_once('-')?;
        Some(Self { made: made.parse().ok()?, id: id.to_owned(), state: state.to_owned() })
    }
}

impl Queue {
    pub fn new(store: &Store, directory: &str) -> Self {
        Self { store: store.clone(), dir: root(store).join(directory) }
    }

    /// Adds a message. Nothing changes if it is there already.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn put(&self, name: &Name, event: &Event) -> Result<(), Error> {
        self.store.place().make_dir(&self.dir).map_err(Error::io("make", &self.dir))?;
        let path = self.dir.join(name.file());
        let mut body = serde_json::to_vec(event).map_err(|e| Error::io("write", &path)(e.into()))?;
        body.push(b'\n');
        self.store.publish_bytes(&body, &path).map(drop)
    }

    /// The messages that were not taken yet, oldest first.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn names(&self) -> Result<Vec<Name>, Error> {
        let entries = self.store.place().list(&self.dir).map_err(Error::io("list", &self.dir))?;
        let mut names: Vec<Name> = entries.iter().filter_map(|entry| Name::parse(&entry.name)).collect();
        names.sort();
        Ok(names)
    }

    /// Reads a message; `None` if another process deleted it. One that is no event is set aside.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self, name: &Name) -> Result<Option<Event>, Error> {
        let path = self.dir.join(name.file());
        let bytes = match self.store.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        match serde_json::from_slice(&bytes) {
            Ok(event) => Ok(Some(event)),
            Err(error) => {
                let moved = self.store.set_aside(&path)?;
                tracing::error!(
                    "the notification {} is damaged ({error}) and is not sent; it was moved to {}",
                    path.display(),
                    moved.display()
                );
                Ok(None)
            }
        }
    }

    /// Deletes a message.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn delete(&self, name: &Name) -> Result<(), Error> {
        let path = self.dir.join(name.file());
        match self.store.place().delete(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("delete", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Takes the lease of the sender; `None` if another process has it, or nothing was ever queued.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn lease(&self) -> Result<Option<Held>, Error> {
        self.store.place().try_lock_dir(&self.dir, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_kept_in_order_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let queue = Queue::new(&store, "0123456789abcdef");
        assert!(queue.names().unwrap().is_empty() && queue.lease().unwrap().is_none());
        let (first, second) = (Event::lag(9, 5), Event::store_error("full"));
        let (one, two) = (Name::of(&first, 1_000), Name::of(&second, 2_000));
        queue.put(&two, &second).unwrap();
        queue.put(&one, &first).unwrap();
        queue.put(&one, &first).unwrap();
        assert_eq!(queue.names().unwrap(), [one.clone(), two.clone()]);
        assert_eq!(queue.read(&one).unwrap(), Some(first.clone()));
        std::fs::write(queue.dir.join(two.file()), "{").unwrap();
        assert_eq!(queue.read(&two).unwrap(), None);
        queue.delete(&one).unwrap();
        assert!(queue.names().unwrap().is_empty() && queue.read(&one).unwrap().is_none());
        assert_eq!(std::fs::read_dir(dir.path().join("aside")).unwrap().count(), 1);
        assert_eq!(waiting(&store).unwrap(), None);
        queue.put(&two, &second).unwrap();
        Queue::new(&store, "fedcba9876543210").put(&one, &first).unwrap();
        assert_eq!(waiting(&store).unwrap(), Some(Waiting { messages: 2, oldest: 1_000 }));
        let lease = queue.lease().unwrap().unwrap();
        assert!(queue.lease().unwrap().is_none());
        drop(lease);
        assert!(queue.lease().unwrap().is_some());
    }
}
