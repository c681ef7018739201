//! How features are scaled before clustering: the words of SQL headers, flags and model files for `tercile_kmeans`' methods.
//!
//! `docs/models.md` defines the methods. Without a word a feature has the method `standard` and the weight 1.

use std::fmt;
use std::str::FromStr;

use poem_openapi::Enum;
use serde::{Deserialize, Serialize};
use tercile_kmeans::features::scaling::{Method, Scaling};

/// How the values of a feature are scaled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Enum)]
#[serde(rename_all = "lowercase")]
#[oai(rename_all = "lowercase", rename = "ScaleMethod")]
pub enum ScaleMethod {
    /// Mean and population standard deviation.
    #[default]
    Standard,
    /// The same of log(1 + x).
    Log,
    /// Median and interquartile range.
    Robust,
    /// Not scaled.
    None,
}

const WORDS: [(&str, ScaleMethod); 4] = [
    ("standard", ScaleMethod::Standard),
    ("log", ScaleMethod::Log),
    ("robust", ScaleMethod::Robust),
    ("none", ScaleMethod::None),
];

impl From<ScaleMethod> for Method {
    fn from(method: ScaleMethod) -> Self {
        match method {
            ScaleMethod::Standard => Self::Standard,
            ScaleMethod::Log => Self::Log,
            ScaleMethod::Robust => Self::Robust,
            ScaleMethod::None => Self::None,
        }
    }
}

impl From<Method> for ScaleMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::Standard => Self::Standard,
            Method::Log => Self::Log,
            Method::Robust => Self::Robust,
            Method::None => Self::None,
        }
    }
}

impl FromStr for ScaleMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = WORDS.iter().find(|(word, _)| *word == text).map(|(_, method)| *method);
        known.ok_or_else(|| format!("a scale is standard, log, robust or none, found {text}"))
    }
}

impl fmt::Display for ScaleMethod {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = WORDS.iter().find(|(_, method)| method == self).map_or("", |(word, _)| word);
        out.write_str(word)
    }
}

/// Parses a weight.
///
/// # Errors
/// If the text is no number above 0, or one so large or small that its square is none.
pub fn weight(text: &str) -> Result<f64, String> {
    let weight = text.parse().ok().filter(|&weight| Scaling::new(Method::Standard, weight).is_some());
    weight.ok_or_else(|| format!("a weight is a number above 0, such as 2 or 0.5, found {text}"))
}

/// The scaling of one feature as far as it is given.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Given {
    pub method: Option<ScaleMethod>,
    pub weight: Option<f64>,
}

impl Given {
    pub fn scaling(&self) -> Scaling {
        let (method, weight) = (self.method.unwrap_or_default().into(), self.weight.unwrap_or(1.0));
        Scaling::new(method, weight).unwrap_or_default()
    }
}

/// `log, weight 2`; `None` for a feature with the standard method and the weight 1.
pub fn words(scaling: Scaling) -> Option<String> {
    let method = ScaleMethod::from(scaling.method());
    match (method, scaling.weight()) {
        (ScaleMethod::Standard, 1.0) => None,
        (ScaleMethod::Standard, weight) => Some(format!("weight {weight}")),
        (method, 1.0) => Some(method.to_string()),
        (method, weight) => Some(format!("{method}, weight {weight}")),
    }
}
