//! Regular expressions of `~` that are compiled once.
//!
//! Input: a physical expression. Output: the same expression, in which each comparison of a text with a constant pattern holds the
//! compiled pattern. DataFusion compiles the pattern of `~` for every batch, which takes longer than to score three records.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, AsArray as _, BooleanArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Literal};
use regex::Regex;

/// `text ~ 'pattern'`, `text ~* 'pattern'`, or the negation of one of them.
#[derive(Debug)]
struct Match {
    text: Arc<dyn PhysicalExpr>,
    /// As DataFusion's kernel compiles it: with its flags.
    pattern: Regex,
    negated: bool,
}

/// Compiles the constant patterns of an expression. What is no such comparison stays, and so does an invalid pattern, which is an
/// error of the evaluation.
///
/// # Errors
/// If the expression cannot be rebuilt.
pub fn compiled(expression: Arc<dyn PhysicalExpr>) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
    let rebuilt = expression.transform_up(|node| {
        Ok(match Match::of(&node) {
            Some(compiled) => Transformed::yes(Arc::new(compiled) as Arc<dyn PhysicalExpr>),
            None => Transformed::no(node),
        })
    })?;
    Ok(rebuilt.data)
}

impl Match {
    fn of(node: &Arc<dyn PhysicalExpr>) -> Option<Self> {
        let binary = node.downcast_ref::<BinaryExpr>()?;
        let (negated, ignores_case) = match binary.op() {
            Operator::RegexMatch => (false, false),
            Operator::RegexIMatch => (false, true),
            Operator::RegexNotMatch => (true, false),
            Operator::RegexNotIMatch => (true, true),
            _ => return None,
        };
        let pattern = binary.right().downcast_ref::<Literal>()?.value().try_as_str()??;
        let flags = if ignores_case { "(?i)" } else { "" };
        let pattern = Regex::new(&format!("{flags}{pattern}")).ok()?;
        Some(Self { text: Arc::clone(binary.left()), pattern, negated })
    }

    fn matches<'t>(&self, texts: impl Iterator<Item = Option<&'t str>>) -> BooleanArray {
        texts.map(|text| text.map(|text| self.pattern.is_match(text) != self.negated)).collect()
    }
}

impl PhysicalExpr for Match {
    fn data_type(&self, _: &Schema) -> DataFusionResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, schema: &Schema) -> DataFusionResult<bool> {
        self.text.nullable(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> DataFusionResult<ColumnarValue> {
        let texts = self.text.evaluate(batch)?.into_array(batch.num_rows())?;
        let found = match texts.data_type() {
            DataType::Utf8 => self.matches(texts.as_string::<i32>().iter()),
            DataType::LargeUtf8 => self.matches(texts.as_string::<i64>().iter()),
            DataType::Utf8View => self.matches(texts.as_string_view().iter()),
            DataType::Null => BooleanArray::new_null(texts.len()),
            other => return datafusion::common::exec_err!("cannot match a regular expression with {other}"),
        };
        Ok(ColumnarValue::Array(Arc::new(found)))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.text]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
        let Self { text, pattern, negated } = self.as_ref();
        let text = children.into_iter().next().unwrap_or_else(|| Arc::clone(text));
        Ok(Arc::new(Self { text, pattern: pattern.clone(), negated: *negated }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = if self.negated { "!~" } else { "~" };
        write!(f, "{} {operator} {}", self.text, self.pattern)
    }
}

impl PartialEq for Match {
    fn eq(&self, other: &Self) -> bool {
        self.text.eq(&other.text) && self.pattern.as_str() == other.pattern.as_str() && self.negated == other.negated
    }
}

impl Eq for Match {}

impl Hash for Match {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
        self.pattern.as_str().hash(state);
        self.negated.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{ArrayRef, StringArray, StringViewArray};
    use datafusion::common::DFSchema;
    use datafusion::prelude::{SessionContext, cast, col};

    use super::*;

    /// The compiled expression has the values of DataFusion's.
    #[test]
    fn values_are_those_of_datafusion() {
        let texts = [Some("1,099"), Some(""), None, Some("ABC"), Some("abc\nabd"), Some("₹1,09,900"), Some("é")];
        let columns: [ArrayRef; 2] =
            [Arc::new(StringArray::from(texts.to_vec())), Arc::new(StringViewArray::from(texts.to_vec()))];
        let ctx = SessionContext::new();
        for column in columns {
            let batch = RecordBatch::try_from_iter_with_nullable([("t", column, true)]).unwrap();
            let schema = DFSchema::try_from(batch.schema()).unwrap();
            for pattern in ["^[0-9]{1,3}(,[0-9]{2,3})*,[0-9]{3}$", "", "b(c|d)$", "^.$", "[A-Z]+", "(?m)c$"] {
                for operator in ["~", "~*", "!~", "!~*"] {
                    let sql = format!("t {operator} '{pattern}'");
                    let parsed = ctx.parse_sql_expr(&sql, &schema).unwrap();
                    let physical = ctx.create_physical_expr(parsed, &schema).unwrap();
                    let own = compiled(Arc::clone(&physical)).unwrap();
                    let values = |expression: &Arc<dyn PhysicalExpr>| {
                        let values = expression.evaluate(&batch).unwrap().into_array(batch.num_rows()).unwrap();
                        values.as_boolean().clone()
                    };
                    assert_eq!(values(&own), values(&physical), "{sql}");
                }
            }
        }
    }

    #[test]
    fn an_invalid_pattern_fails_when_it_is_evaluated_and_other_expressions_stay() {
        let ctx = SessionContext::new();
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let batch = RecordBatch::try_from_iter([("t", texts)]).unwrap();
        let schema = DFSchema::try_from(batch.schema()).unwrap();
        let physical =
            |sql: &str| ctx.create_physical_expr(ctx.parse_sql_expr(sql, &schema).unwrap(), &schema).unwrap();
        let invalid = physical("t ~ '(a+'");
        assert!(compiled(invalid).unwrap().evaluate(&batch).is_err());
        let other = physical("t ~ t");
        assert!(compiled(Arc::clone(&other)).unwrap().eq(&other));
        let nested = ctx.create_physical_expr(cast(col("t"), DataType::Utf8).is_null(), &schema).unwrap();
        assert!(compiled(Arc::clone(&nested)).unwrap().eq(&nested));
    }
}
