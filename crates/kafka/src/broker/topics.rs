//! Several topics that are read as one: their partitions are numbered through.
//!
//! Input: the names, separated by commas, which no topic's name contains. Output: a number for each partition of each topic. Partition
//! `p` of topic `i` of `n` has the number `p * n + i`, so numbers stay when a topic gets more partitions. A single topic keeps its own
//! partition numbers.

/// `partition 1 of orders`: a partition number of a topic, or of several, for messages.
pub fn place(topic: &str, number: i32) -> String {
    let topics = Topics::new(topic);
    let (topic, partition) = topics.place(number);
    format!("partition {partition} of {topic}")
}

/// One topic, or several that are read as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    names: Vec<String>,
}

impl Topics {
    /// The topics of a name as in [`super::Topic::name`]: one, or several separated by commas.
    pub fn new(name: &str) -> Self {
        Self { names: name.split(',').map(str::to_owned).collect() }
    }

    /// The names of the topics, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The name of all together.
    pub fn name(&self) -> String {
        self.names.join(",")
    }

    /// The topic of a partition number, and the partition's number there.
    pub fn place(&self, number: i32) -> (&str, i32) {
        let topics = self.count();
        let topic = number.rem_euclid(topics) as usize;
        (self.names.get(topic).map_or("", String::as_str), number.div_euclid(topics))
    }

    /// The number of a topic's partition; `None` for another topic.
    pub fn number(&self, topic: &str, partition: i32) -> Option<i32> {
        let index = self.names.iter().position(|name| name == topic)?;
        partition.checked_mul(self.count())?.checked_add(i32::try_from(index).ok()?)
    }

    fn count(&self) -> i32 {
        i32::try_from(self.names.len()).unwrap_or(i32::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_topic_keeps_its_partitions() {
        let topics = Topics::new("orders");
        for partition in [0, 1, 9_999] {
            assert_eq!(topics.number("orders", partition), Some(partition));
            assert_eq!(topics.place(partition), ("orders", partition));
        }
        assert_eq!(topics.number("returns", 0), None);
    }

    #[test]
    fn partitions_of_several_topics_have_different_numbers() {
        let topics = Topics::new("orders,returns,visits");
        let mut seen = std::collections::BTreeSet::new();
        for name in ["orders", "returns", "visits"] {
            for partition in 0..100 {
                let number = topics.number(name, partition).unwrap();
                assert!(seen.insert(number));
                assert_eq!(topics.place(number), (name, partition));
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), (0..300).collect::<Vec<_>>());
        assert_eq!(topics.name(), "orders,returns,visits");
        assert_eq!(
            (place("orders", 4).as_str(), place("orders,returns", 5).as_str()),
            ("partition 4 of orders", "partition 2 of returns")
        );
    }
}
