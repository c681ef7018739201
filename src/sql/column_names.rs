//! Names of the columns of a result: the text of an expression, and no name twice.
//!
//! Input: a query that is about to be planned. Output: the query with aliases. DataFusion names an expression after its plan
//! (`count(Int64(1))`), and rejects two columns of one name.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{self, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::parser::{CopyToSource, Statement};
use datafusion::sql::sqlparser::ast::{self, Expr, Ident, Query, Select, SelectItem, SetExpr};

/// Start of a temporary name. A number, a `_` and the name follow.
const APART: &str = "_beside_wildcard_";

/// Names the columns of a query, or of the query that a statement writes.
pub fn name(statement: &mut Statement) {
    if let Some(query) = query_of(statement) {
        name_query(query);
    }
}

fn name_query(query: &mut Query) {
    // The planner compares ORDER BY with the columns of a DISTINCT as they are written.
    let ordered = query.order_by.is_some();
    if let Some(select) = first_select(&mut query.body) {
        name_columns(&mut select.projection, select.distinct.is_none() || !ordered);
    }
}

/// The query that names the columns of all.
fn first_select(mut body: &mut SetExpr) -> Option<&mut Select> {
    loop {
        match body {
            SetExpr::Select(select) => return Some(select),
            SetExpr::SetOperation { left, .. } => body = left.as_mut(),
            SetExpr::Query(inner) => body = inner.body.as_mut(),
            _ => return None,
        }
    }
}

/// The name of a column as the planner reads it.
fn plain(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// Gives aliases to expressions (`all`), and to columns that occur twice.
fn name_columns(projection: &mut [SelectItem], all: bool) {
    // Columns of a wildcard are not known here, and keep their names.
    let mut taken = BTreeSet::new();
    for item in projection {
        let (shown, is_column) = match &*item {
            SelectItem::UnnamedExpr(Expr::Identifier(column)) => (plain(column), true),
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => match parts.last() {
                Some(column) => (plain(column), true),
                None => continue,
            },
            SelectItem::UnnamedExpr(_) if !all => continue,
            SelectItem::UnnamedExpr(expr) => (expr.to_string(), false),
            SelectItem::ExprWithAlias { alias, .. } => (plain(alias), true),
            _ => continue,
        };
        let Some(name) = free_name(&shown, &taken) else { continue };
        if !is_column || name != shown {
            set_alias(item, &name);
        }
        taken.insert(name);
    }
}

/// The name, or the name with a number.
fn free_name(shown: &str, taken: &BTreeSet<String>) -> Option<String> {
    let numbered = (2..).map(|n| format!("{shown}_{n}"));
    std::iter::once(shown.to_owned()).chain(numbered).find(|name| !taken.contains(name))
}

fn set_alias(item: &mut SelectItem, name: &str) {
    let alias = Ident::with_quote('"', name);
    *item = match std::mem::replace(item, SelectItem::Wildcard(Default::default())) {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
            SelectItem::ExprWithAlias { expr, alias }
        }
        other => other,
    };
}

/// Whether a statement does not plan because two of its columns have one name.
pub fn is_repeated(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::SchemaError(schema, _) => matches!(
            schema.as_ref(),
            SchemaError::AmbiguousReference { .. }
                | SchemaError::DuplicateQualifiedField { .. }
                | SchemaError::DuplicateUnqualifiedField { .. }
        ),
        other => other.strip_backtrace().contains("require unique expression names"),
    }
}

/// The statement with the wildcards of its SELECT alone, whose columns are those of the wildcards. `None` if it has no wildcard beside
/// other columns.
pub fn wildcards(statement: &Statement) -> Option<Statement> {
    let mut statement = statement.clone();
    let mut query = query_of(&mut statement)?.clone();
    (query.order_by, query.limit_clause) = (None, None);
    let select = first_select(&mut query.body)?;
    let all = select.projection.len();
    select.projection.retain(is_wildcard);
    let some = select.projection.len();
    (some > 0 && some < all).then(|| Statement::Statement(Box::new(ast::Statement::Query(Box::new(query)))))
}

/// Gives the columns beside a wildcard other names if the wildcard has columns (`taken`) of theirs. [`distinguish`] takes the names back.
pub fn set_apart(statement: &mut Statement, taken: &BTreeSet<String>) {
    let Some(select) = query_of(statement).and_then(|query| first_select(&mut query.body)) else { return };
    for (i, item) in select.projection.iter_mut().enumerate() {
        let name = match &*item {
            SelectItem::UnnamedExpr(Expr::Identifier(column)) | SelectItem::ExprWithAlias { alias: column, .. } => {
                plain(column)
            }
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts.last().map(plain).unwrap_or_default(),
            _ => continue,
        };
        if taken.contains(&name) {
            set_alias(item, &format!("{APART}{i}_{name}"));
        }
    }
}

fn is_wildcard(item: &SelectItem) -> bool {
    matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..))
}

/// The query that a statement is, or that it writes.
fn query_of(statement: &mut Statement) -> Option<&mut Query> {
    match statement {
        Statement::Statement(inner) => match inner.as_mut() {
            ast::Statement::Query(query) => Some(query),
            _ => None,
        },
        Statement::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => Some(query),
            CopyToSource::Relation(_) => None,
        },
        Statement::Explain(_) | Statement::CreateExternalTable(_) | Statement::Reset(_) => None,
    }
}

/// Adds numbers to the names of columns that occur twice, as in `SELECT * FROM a, b`.
pub fn distinguish(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let plan = match plan {
        LogicalPlan::Copy(mut copy) => {
            copy.input = Arc::new(distinguish(Arc::unwrap_or_clone(copy.input))?);
            return Ok(LogicalPlan::Copy(copy));
        }
        LogicalPlan::Ddl(_) | LogicalPlan::Dml(_) | LogicalPlan::Statement(_) => return Ok(plan),
        plan => plan,
    };
    let mut taken = BTreeSet::new();
    let mut columns = Vec::new();
    let mut repeated = false;
    for column in plan.schema().columns() {
        let shown = match column.name.strip_prefix(APART).and_then(|rest| rest.split_once('_')) {
            Some((_, name)) => name.to_owned(),
            None => column.name.clone(),
        };
        let Some(name) = free_name(&shown, &taken) else { return Ok(plan) };
        repeated |= name != column.name;
        taken.insert(name.clone());
        columns.push(logical_expr::Expr::Column(column).alias(name));
    }
    if !repeated {
        return Ok(plan);
    }
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}

#[cfg(test)]
mod tests {
    use datafusion::sql::parser::DFParserBuilder;

    use super::*;

    #[test]
    fn columns_are_named_after_their_text_and_differ() {
        for (sql, named) in [
            (
                "SELECT count(*), count(*), a FROM t",
                r#"SELECT count(*) AS "count(*)", count(*) AS "count(*)_2", a FROM t"#,
            ),
            ("SELECT a, t.a, A, \"A\" FROM t", r#"SELECT a, t.a AS "a_2", A AS "a_3", "A" FROM t"#),
            ("SELECT 1 AS a, 2 AS a, *", r#"SELECT 1 AS a, 2 AS "a_2", *"#),
            ("SELECT a + 1 FROM t UNION SELECT 2", r#"SELECT a + 1 AS "a + 1" FROM t UNION SELECT 2"#),
            ("SELECT DISTINCT a + 1 FROM t", r#"SELECT DISTINCT a + 1 AS "a + 1" FROM t"#),
            ("SELECT DISTINCT a + 1 FROM t ORDER BY a + 1", "SELECT DISTINCT a + 1 FROM t ORDER BY a + 1"),
            ("SELECT DISTINCT a, a FROM t ORDER BY a", r#"SELECT DISTINCT a, a AS "a_2" FROM t ORDER BY a"#),
            ("SELECT b FROM (SELECT 1 + 1) AS u(b)", "SELECT b FROM (SELECT 1 + 1) AS u (b)"),
            // An alias doubles quotes in its text.
            (r#"SELECT '"' || a FROM t"#, r#"SELECT '"' || a AS "'""' || a" FROM t"#),
        ] {
            let mut statements = DFParserBuilder::new(sql).build().unwrap().parse_statements().unwrap();
            let mut statement = statements.pop_front().unwrap();
            name(&mut statement);
            assert_eq!(statement.to_string(), named, "{sql}");
        }
    }
}
