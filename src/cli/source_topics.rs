//! The topic, or the topics, that feed a store.
//!
//! Input: `--topic`, the cluster, and the store. Output: the description of all together. When a store begins, several topics must
//! have the declared fields in common: records of different kinds in one table would be counted as records with missing values.

use std::collections::{BTreeMap, BTreeSet};

use tercile_kafka::broker::{Cluster, Topic, Topics};
use tercile_store::Store;
use tercile_store::record::Fields;

use super::first_records;
use crate::config::SourceArgs;
use crate::files;

/// Number of records of each topic that are compared.
const COMPARED: usize = 500;

/// Describes the topics of `--topic`. Those of a new store must agree in the declared `fields`.
///
/// # Errors
/// If a topic does not exist, the broker refuses, or the topics have different fields.
pub fn find(named: &SourceArgs, cluster: &Cluster, store: &Store, fields: &Fields) -> anyhow::Result<Topic> {
    let name = named.resolve(cluster, store)?;
    let topics = Topics::new(&name);
    let described = cluster.topic(&name)?;
    if topics.names().len() > 1 && store.source()?.is_none() {
        let mut seen = BTreeMap::new();
        for topic in topics.names() {
            seen.insert(topic.as_str(), Seen::of(cluster, topic, fields)?);
        }
        agree(&seen)?;
    }
    Ok(described)
}

/// The declared fields in the first records of a topic.
#[derive(Default)]
struct Seen {
    /// Records that are objects.
    objects: usize,
    /// The number of those that have a field.
    with: BTreeMap<String, usize>,
}

impl Seen {
    fn of(cluster: &Cluster, topic: &str, fields: &Fields) -> anyhow::Result<Self> {
        let mut seen = Self::default();
        let mut see = |payload: &[u8]| {
            let object = std::str::from_utf8(payload).ok().and_then(|text| files::fields(text).ok());
            if let Some(object) = object {
                seen.add(object.into_iter().map(|(name, _)| name.to_string()), fields);
            }
        };
        first_records::read(cluster, &cluster.topic(topic)?, COMPARED, &mut see)?;
        Ok(seen)
    }

    fn add(&mut self, names: impl Iterator<Item = String>, fields: &Fields) {
        self.objects += 1;
        let names: BTreeSet<String> = names.filter(|name| fields.names().contains(name)).collect();
        for name in names {
            *self.with.entry(name).or_default() += 1;
        }
    }
}

/// Topics disagree if most records of one have a field that no record of another has. A topic without records agrees with all.
fn agree(seen: &BTreeMap<&str, Seen>) -> anyhow::Result<()> {
    for (topic, one) in seen {
        for (field, with) in one.with.iter().filter(|(_, with)| **with * 2 > one.objects) {
            let without = seen.iter().find(|(_, other)| other.objects > 0 && !other.with.contains_key(field));
            if let Some((other, compared)) = without {
                anyhow::bail!(
                    "the topics {topic} and {other} have different fields: {field} is in {with} of the first {} records of {topic}, \
                     and in none of {} of {other}; read them into a --store each, or declare only fields of both in 00_records.sql",
                    one.objects,
                    compared.objects
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(records: &[&[&str]]) -> Seen {
        let fields = Fields::new(["id", "price", "note"].map(str::to_owned).to_vec());
        let mut seen = Seen::default();
        for names in records {
            seen.add(names.iter().map(|name| (*name).to_owned()), &fields);
        }
        seen
    }

    #[test]
    fn topics_agree_in_the_fields_that_most_records_have() {
        let orders = || seen(&[&["id", "price"], &["id", "price", "note"], &["id", "price", "undeclared"]]);
        for other in [seen(&[]), seen(&[&["id"], &["id", "price"]]), orders()] {
            agree(&BTreeMap::from([("orders", orders()), ("others", other)])).unwrap();
        }
        let visits = seen(&[&["id", "page"], &["id"]]);
        let error = agree(&BTreeMap::from([("orders", orders()), ("visits", visits)])).unwrap_err().to_string();
        assert!(
            error.contains("price is in 3 of the first 3 records of orders, and in none of 2 of visits"),
            "{error}"
        );
    }
}
