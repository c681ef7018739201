//! A trial read for `doctor`: brokers report a missing read permission only to a fetch request.

use std::time::{Duration, Instant};

use super::{Bound, Cluster, Consumer, Error, Item, Reading, Start, Topic};

/// Maximum bytes of fetched records; none are wanted.
const QUEUE_BYTES: usize = 1 << 16;

impl Cluster {
    /// Reads at the end of a topic until the broker answers, which shows that every leader is reachable and reading is allowed.
    /// Joins no group and commits nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with the broker's reason, or [`Error::Unreachable`] if there is no answer within the timeout.
    pub fn try_reading(&self, topic: &Topic) -> Result<(), Error> {
        let ends = self.offsets(&topic.name, &topic.numbers, Bound::Latest)?;
        let Some((&partition, &offset)) = ends.first_key_value() else { return Ok(()) };
        let start = Start { partition, next: offset, offset, base: 0 };
        let reading = Reading { embedded: topic.embedded, queue_bytes: QUEUE_BYTES, refresh: Duration::from_secs(300) };
        let consumer = Consumer::assign(self, &topic.name, &[start], reading)?;
        let queue = consumer.queue(start)?;
        let (began, mut items) = (Instant::now(), Vec::new());
        while began.elapsed() < self.timeout {
            let _ = consumer.poll(Duration::ZERO);
            queue.take(&mut items, Duration::from_millis(50));
            for item in items.drain(..) {
                match item {
                    Item::Refused(code) => return Err(consumer.refused(code)),
                    Item::Trouble(_) => {}
                    Item::Message(_) | Item::End(_) | Item::OutOfRange | Item::Broken(_) => return Ok(()),
                }
            }
        }
        Err(self.unreachable())
    }
}
