//! The options `--param` and `--table` of a query.

use std::path::PathBuf;

use datafusion::scalar::ScalarValue;

/// `--param name=value`. The type is inferred from the value, unless it is `--param name:text=value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Param(pub String, pub ScalarValue);

impl Param {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
        let (name, kind) = name.split_once(':').map_or((name, None), |(name, kind)| (name, Some(kind.trim())));
        let name = name.trim().trim_start_matches('$');
        if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
            return Err("a parameter's name is made of letters, digits and _".to_owned());
        }
        let value = match kind {
            None => typed(value),
            Some("text") => ScalarValue::Utf8(Some(value.to_owned())),
            Some(kind) => return Err(format!("expected NAME=VALUE or NAME:text=VALUE, not NAME:{kind}=VALUE")),
        };
        Ok(Self(name.to_owned(), value))
    }
}

/// A number if the value has the canonical form of one; `007` and `1e999` are text.
fn typed(value: &str) -> ScalarValue {
    if let Ok(number) = value.parse::<i64>()
        && number.to_string() == value
    {
        return ScalarValue::Int64(Some(number));
    }
    let digits = value.trim_start_matches('-');
    let plain = digits.starts_with(|c: char| c.is_ascii_digit()) && !(digits.starts_with('0') && digits.len() > 1)
        || digits.starts_with("0.");
    if let Ok(number) = value.parse::<f64>()
        && plain
        && number.is_finite()
        && value.contains(['.', 'e', 'E'])
    {
        return ScalarValue::Float64(Some(number));
    }
    match value {
        "true" => ScalarValue::Boolean(Some(true)),
        "false" => ScalarValue::Boolean(Some(false)),
        "null" => ScalarValue::Null,
        text => ScalarValue::Utf8(Some(text.to_owned())),
    }
}

/// `--table name=path`
#[derive(Debug, Clone)]
pub struct TableFile {
    pub name: String,
    pub path: PathBuf,
}

impl TableFile {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("expected NAME=FILE")?;
        if name.is_empty() || path.is_empty() {
            return Err("expected NAME=FILE".to_owned());
        }
        Ok(Self { name: name.to_owned(), path: path.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_typed_by_their_looks() {
        let value = |text: &str| Param::parse(text).unwrap().1;
        assert_eq!(value("a=12"), ScalarValue::Int64(Some(12)));
        assert_eq!(value("a=-4.5"), ScalarValue::Float64(Some(-4.5)));
        assert_eq!(value("a=0.5"), ScalarValue::Float64(Some(0.5)));
        assert_eq!(value("a=1e3"), ScalarValue::Float64(Some(1000.0)));
        assert_eq!(value("a=true"), ScalarValue::Boolean(Some(true)));
        assert_eq!(value("a=null"), ScalarValue::Null);
        for text in ["", "007", "00.5", "1e999", "nan", "inf", "x'; DROP TABLE y", "9223372036854775808", "+1", "a=b"] {
            assert_eq!(value(&format!("a={text}")), ScalarValue::Utf8(Some(text.to_owned())), "{text}");
        }
        assert_eq!(value("$zip:text=12"), ScalarValue::Utf8(Some("12".to_owned())));
        assert_eq!(value("a: text =null"), ScalarValue::Utf8(Some("null".to_owned())));
        assert_eq!(value("a=b:text=c"), ScalarValue::Utf8(Some("b:text=c".to_owned())));
        assert!(Param::parse("a:int=1").is_err());
        assert!(Param::parse("a").is_err() && Param::parse("=1").is_err() && Param::parse("a b=1").is_err());
    }
}
