//! Names of the columns of a result: the text of an expression, and no name twice.
//!
//! Input: a query that is about to be planned. Output: the query with aliases. DataFusion names an expression after its plan
//! (`count(Int64(1))`), and rejects two columns of one name.

use std::collections::BTreeSet;

use datafusion::sql::parser::{CopyToSource, Statement};
use datafusion::sql::sqlparser::ast::{self, Expr, Ident, Query, SelectItem, SetExpr};

/// Names the columns of a query, or of the query that a statement writes.
pub fn name(statement: &mut Statement) {
    match statement {
        Statement::Statement(inner) => {
            if let ast::Statement::Query(query) = inner.as_mut() {
                name_query(query);
            }
        }
        Statement::CopyTo(copy) => {
            if let CopyToSource::Query(query) = &mut copy.source {
                name_query(query);
            }
        }
        Statement::Explain(_) | Statement::CreateExternalTable(_) | Statement::Reset(_) => {}
    }
}

fn name_query(query: &mut Query) {
    let mut body = query.body.as_mut();
    loop {
        match body {
            SetExpr::Select(select) => {
                // The planner compares ORDER BY with the columns of a DISTINCT as they are written.
                if select.distinct.is_none() {
                    name_columns(&mut select.projection);
                }
                return;
            }
            // The first query names the columns of all.
            SetExpr::SetOperation { left, .. } => body = left.as_mut(),
            SetExpr::Query(inner) => body = inner.body.as_mut(),
            _ => return,
        }
    }
}

fn name_columns(projection: &mut [SelectItem]) {
    let plain = |ident: &Ident| match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    };
    // Columns of a wildcard are not known here, and keep their names.
    let mut taken = BTreeSet::new();
    for item in projection {
        let (shown, is_column) = match &*item {
            SelectItem::UnnamedExpr(Expr::Identifier(column)) => (plain(column), true),
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => match parts.last() {
                Some(column) => (plain(column), true),
                None => continue,
            },
            SelectItem::UnnamedExpr(expr) => (expr.to_string(), false),
            SelectItem::ExprWithAlias { alias, .. } => (plain(alias), true),
            _ => continue,
        };
        let free = |name: &String| !taken.contains(name);
        let numbered = || (2..).map(|n| format!("{shown}_{n}")).find(free);
        let Some(name) = Some(shown.clone()).filter(free).or_else(numbered) else { continue };
        if !is_column || name != shown {
            let alias = Ident::with_quote('"', name.clone());
            *item = match std::mem::replace(item, SelectItem::Wildcard(Default::default())) {
                SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                    SelectItem::ExprWithAlias { expr, alias }
                }
                other => other,
            };
        }
        taken.insert(name);
    }
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
            ("SELECT DISTINCT a + 1 FROM t", "SELECT DISTINCT a + 1 FROM t"),
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
