//! `--scale` and `--weight` of commands that cluster a file.

use clap::Args;
use tercile_kmeans::features::scaling::Scaling;

use super::Usage;
use crate::scaling::{self, Given, ScaleMethod};

/// How features are scaled.
#[derive(Args)]
pub(super) struct ScalingArgs {
    /// Scale of a feature, as in rating_count=log: standard (mean and standard deviation, the default), log (the same of log(1 + x)),
    /// robust (median and interquartile range) or none; several are separated by commas
    #[arg(long, env = "TERCILE_SCALE", value_name = "NAME=METHOD", value_delimiter = ',', value_parser = scale)]
    scale: Vec<(String, ScaleMethod)>,
    /// Factor of a scaled feature, as in rating=2 (default 1); several are separated by commas
    #[arg(long, env = "TERCILE_WEIGHT", value_name = "NAME=WEIGHT", value_delimiter = ',', value_parser = weight)]
    weight: Vec<(String, f64)>,
}

impl ScalingArgs {
    /// How each feature is scaled, in their order.
    ///
    /// # Errors
    /// If a flag names something else than a feature, or a feature twice.
    pub fn of(&self, features: &[String]) -> Result<Vec<Scaling>, Usage> {
        let mut given = vec![Given::default(); features.len()];
        let twice = |flag: &str, name: &str| Usage(format!("{flag} names {name} twice"));
        for (name, method) in &self.scale {
            let given = find(&mut given, features, ("--scale", name))?;
            if given.method.replace(*method).is_some() {
                return Err(twice("--scale", name));
            }
        }
        for (name, weight) in &self.weight {
            let given = find(&mut given, features, ("--weight", name))?;
            if given.weight.replace(*weight).is_some() {
                return Err(twice("--weight", name));
            }
        }
        Ok(given.iter().map(Given::scaling).collect())
    }
}

fn find<'g>(given: &'g mut [Given], features: &[String], (flag, name): (&str, &str)) -> Result<&'g mut Given, Usage> {
    let found = given.iter_mut().zip(features).find(|(_, feature)| *feature == name).map(|(given, _)| given);
    found.ok_or_else(|| Usage(format!("{flag} names {name}, which is none of --features {}", features.join(","))))
}

/// Parses `rating_count=log`.
fn scale(text: &str) -> Result<(String, ScaleMethod), String> {
    let (name, method) = text.rsplit_once('=').ok_or("expected a feature and its scale, as in rating_count=log")?;
    Ok((name.to_owned(), method.parse()?))
}

/// Parses `rating=2`.
fn weight(text: &str) -> Result<(String, f64), String> {
    let (name, weight) = text.rsplit_once('=').ok_or("expected a feature and its weight, as in rating=2")?;
    Ok((name.to_owned(), scaling::weight(weight)?))
}
