//! Offsets of many partitions at a position, with one request per leader.
//!
//! rdkafka's `fetch_watermarks` asks for one partition at a time, and each request waits behind the fetch in progress: a topic of
//! 300 partitions took half a minute. The ListOffsets call of librdkafka's admin API is not used: while it looks for the leaders, its
//! first step in the calling thread races with the thread that handles metadata, and the process crashes (2.12.1,
//! rd_kafka_topic_partition_list_query_leaders_async: the second step clears `eonce`, which the first then locks).

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Topics;
use super::context::Context;

/// A position in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The offset of the first record that the broker holds.
    Earliest,
    /// The offset that the next record will get; with open transactions, the offset of the first undecided record.
    Latest,
    /// The offset of the first record with this timestamp or a later one, in milliseconds since 1970; the latest offset if there is
    /// none.
    At(i64),
}

/// Per partition its offset, or the error code.
pub(super) type Offsets = BTreeMap<i32, Result<i64, RDKafkaErrorCode>>;

/// Pause between two requests for metadata while a partition has no leader.
const ELECTION_PAUSE: Duration = Duration::from_millis(100);

/// The offsets of all `partitions` at this position. The client's `isolation.level` must be `read_committed`, the default: records
/// of an open transaction do not count.
pub(super) fn offsets(
    client: &BaseConsumer<Context>,
    topics: &Topics,
    partitions: &[i32],
    bound: Bound,
    timeout: Duration,
) -> Result<Offsets, KafkaError> {
    let deadline = Instant::now() + timeout;
    let leaders = leaders(client, topics, partitions, deadline)?;
    let Bound::At(millis) = bound else {
        let position = if bound == Bound::Earliest { Offset::Beginning } else { Offset::End };
        return Ok(list(client, topics, &leaders, position, deadline));
    };
    // The ends first: a record that arrives between the requests must not be passed over.
    let ends = list(client, topics, &leaders, Offset::End, deadline);
    // The request has a timestamp in the place of an offset.
    let mut found = list(client, topics, &leaders, Offset::Offset(millis), deadline);
    for (partition, answer) in &mut found {
        if *answer == Err(RDKafkaErrorCode::OffsetNotAvailable)
            && let Some(end) = ends.get(partition)
        {
            answer.clone_from(end);
        }
    }
    Ok(found)
}

/// Who leads which partitions.
struct Leaders {
    /// The partitions by the id of the broker that leads them.
    led: BTreeMap<i32, Vec<i32>>,
    /// The partitions that have no leader until the deadline, or do not exist.
    failed: Vec<(i32, RDKafkaErrorCode)>,
}

fn leaders(
    client: &BaseConsumer<Context>,
    topics: &Topics,
    partitions: &[i32],
    deadline: Instant,
) -> Result<Leaders, KafkaError> {
    loop {
        let mut known: BTreeMap<i32, i32> = BTreeMap::new();
        for name in topics.names() {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let metadata = client.fetch_metadata(Some(name), left)?;
            for topic in metadata.topics().iter().filter(|topic| topic.name() == name) {
                if let Some(code) = topic.error() {
                    return Err(KafkaError::MetadataFetch(code.into()));
                }
                let numbered = |at: i32, leader: i32| Some((topics.number(name, at)?, leader));
                known.extend(topic.partitions().iter().filter_map(|at| numbered(at.id(), at.leader())));
            }
        }
        let mut leaders = Leaders { led: BTreeMap::new(), failed: Vec::new() };
        let mut electing = false;
        for &partition in partitions {
            match known.get(&partition) {
                Some(&leader) if leader >= 0 => leaders.led.entry(leader).or_default().push(partition),
                Some(_) => {
                    electing = true;
                    leaders.failed.push((partition, RDKafkaErrorCode::OperationTimedOut));
                }
                None => leaders.failed.push((partition, RDKafkaErrorCode::UnknownPartition)),
            }
        }
        if !electing || Instant::now() + ELECTION_PAUSE >= deadline {
            return Ok(leaders);
        }
        thread::sleep(ELECTION_PAUSE);
    }
}

/// Asks all leaders at the same time: librdkafka returns nothing at all if one of the brokers in a call does not answer.
fn list(
    client: &BaseConsumer<Context>,
    topics: &Topics,
    leaders: &Leaders,
    position: Offset,
    deadline: Instant,
) -> Offsets {
    let ask = |partitions: &[i32]| {
        list_of_leader(client, topics, partitions, position, deadline).unwrap_or_else(|error| {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            partitions.iter().map(|&partition| (partition, Err(code))).collect()
        })
    };
    let mut found: Offsets = leaders.failed.iter().map(|&(partition, code)| (partition, Err(code))).collect();
    thread::scope(|scope| {
        let mut groups = leaders.led.values();
        let first = groups.next();
        let others: Vec<_> = groups.map(|partitions| scope.spawn(|| ask(partitions))).collect();
        found.extend(first.map(|partitions| ask(partitions)).unwrap_or_default());
        for other in others {
            found.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    found
}

fn list_of_leader(
    client: &BaseConsumer<Context>,
    topics: &Topics,
    partitions: &[i32],
    position: Offset,
    deadline: Instant,
) -> Result<Offsets, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for &number in partitions {
        let (topic, partition) = topics.place(number);
        list.add_partition_offset(topic, partition, position)?;
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let answer = client.offsets_for_times(list, left)?;
    let mut found = Offsets::new();
    for place in answer.elements() {
        let offset = match (place.error(), place.offset()) {
            (Err(error), _) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)),
            (Ok(()), Offset::Offset(offset)) => Ok(offset),
            // No record has the timestamp or a later one.
            (Ok(()), _) => Err(RDKafkaErrorCode::OffsetNotAvailable),
        };
        let number = topics.number(place.topic(), place.partition());
        found.insert(number.ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::InvalidMessage))?, offset);
    }
    Ok(found)
}
