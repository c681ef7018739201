//! Reads the numbers of a model file exactly.
//!
//! serde_json writes a double so that it can be read back exactly, but its fast parser may be off by one unit in the last
//! place. This module uses Rust's exact parser.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

struct Exact(f64);

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        // A number that is too large for a double would become infinity, which no model contains and JSON cannot represent.
        let number = text.get().parse().ok().filter(|number: &f64| number.is_finite());
        number.map(Self).ok_or_else(|| D::Error::custom(format!("expected a number, found {text}")))
    }
}

pub fn one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Exact::deserialize(deserializer)?.0)
}

pub fn maybe<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(Option::<Exact>::deserialize(deserializer)?.map(|exact| exact.0))
}

pub fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    Ok(Vec::<Exact>::deserialize(deserializer)?.into_iter().map(|exact| exact.0).collect())
}

pub fn maybe_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<f64>>, D::Error> {
    let read = Option::<Vec<Exact>>::deserialize(deserializer)?;
    Ok(read.map(|list| list.into_iter().map(|exact| exact.0).collect()))
}

pub fn lists<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<f64>>, D::Error> {
    let read = Vec::<Vec<Exact>>::deserialize(deserializer)?;
    Ok(read.into_iter().map(|list| list.into_iter().map(|exact| exact.0).collect()).collect())
}

pub fn by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let read = BTreeMap::<String, Exact>::deserialize(deserializer)?;
    Ok(read.into_iter().map(|(name, exact)| (name, exact.0)).collect())
}

pub fn lists_by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Vec<f64>>, D::Error> {
    let read = BTreeMap::<String, Vec<Exact>>::deserialize(deserializer)?;
    let list = |list: Vec<Exact>| list.into_iter().map(|exact| exact.0).collect();
    Ok(read.into_iter().map(|(name, exact)| (name, list(exact))).collect())
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};

    use super::*;

    #[derive(Deserialize)]
    struct Read {
        #[serde(deserialize_with = "list")]
        list: Vec<f64>,
        #[serde(deserialize_with = "maybe")]
        none: Option<f64>,
    }

    #[test]
    fn every_bit_comes_back() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let written: Vec<f64> =
            (0..20_000).map(|_| f64::from_bits(rng.next_u64())).filter(|value| value.is_finite()).collect();
        let json = serde_json::json!({ "list": written, "none": null }).to_string();
        let read: Read = serde_json::from_str(&json).unwrap();
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(bits(&written) == bits(&read.list) && read.none.is_none());
        for wrong in
            [r#"{"list": ["1"], "none": 2}"#, r#"{"list": [1e999], "none": 2}"#, r#"{"list": [], "none": -1e999}"#]
        {
            assert!(serde_json::from_str::<Read>(wrong).is_err(), "{wrong}");
        }
    }
}
