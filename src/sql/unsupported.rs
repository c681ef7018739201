//! Clauses that the engine ignores without a word, or rejects with its internal representation of them.
//!
//! Input: a parsed statement. Output: the first such clause, as a word to look for and a sentence with an alternative.

use std::ops::ControlFlow;

use datafusion::arrow::array::timezone::Tz;
use datafusion::sql::parser::{CopyToSource, Statement};
use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, Expr, LockType, Query, Select, Set, SetExpr, TableFactor, Visit as _, Visitor,
};

/// The word at which the clause is found, and why it cannot be used.
type Clause = (&'static str, &'static str);

/// Looks for clauses that cannot be used.
pub fn check(statement: &Statement) -> Result<(), Clause> {
    let found = match statement {
        Statement::Statement(inner) => inner.visit(&mut Look),
        Statement::Explain(explain) => return check(&explain.statement),
        Statement::CopyTo(copy) => match &copy.source {
            CopyToSource::Query(query) => query.visit(&mut Look),
            CopyToSource::Relation(_) => ControlFlow::Continue(()),
        },
        Statement::CreateExternalTable(_) | Statement::Reset(_) => ControlFlow::Continue(()),
    };
    match found {
        ControlFlow::Break(clause) => Err(clause),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Look;

impl Visitor for Look {
    type Break = Clause;

    fn pre_visit_statement(&mut self, statement: &ast::Statement) -> ControlFlow<Clause> {
        match statement {
            ast::Statement::Set(Set::SetTimeZone { .. }) => {
                ControlFlow::Break(("zone", "SET TIME ZONE takes a constant, as in SET TIME ZONE 'Europe/Berlin'"))
            }
            ast::Statement::StartTransaction { .. }
            | ast::Statement::Commit { .. }
            | ast::Statement::Rollback { .. } => {
                ControlFlow::Break(("", "there are no transactions here: each statement takes effect by itself"))
            }
            ast::Statement::Prepare { .. } | ast::Statement::Execute { .. } | ast::Statement::Deallocate { .. } => {
                ControlFlow::Break((
                    "",
                    "there are no prepared statements here; write $name in the statement and --param name=value",
                ))
            }
            ast::Statement::CreateTable(table) if has_constraints(table) => ControlFlow::Break((
                "",
                "a table has no constraints here: leave out PRIMARY KEY, UNIQUE, CHECK, NOT NULL, REFERENCES and DEFAULT",
            )),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Clause> {
        const LOCKS: &str =
            "rows cannot be locked: each query reads a snapshot of its own; leave out FOR UPDATE or FOR SHARE";
        let word = |lock: &LockType| if *lock == LockType::Share { "share" } else { "update" };
        match (&query.fetch, query.locks.first()) {
            (Some(_), _) => ControlFlow::Break(("fetch", "FETCH is not supported; write LIMIT")),
            (None, Some(lock)) => ControlFlow::Break((word(&lock.lock_type), LOCKS)),
            (None, None) => all_rows(&query.body),
        }
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Clause> {
        if select.top.is_some() {
            return ControlFlow::Break(("top", "TOP is not supported; write LIMIT at the end of the query"));
        }
        if select.from.iter().flat_map(|table| &table.joins).any(loses_keys) {
            return ControlFlow::Break((
                "join",
                "RIGHT and FULL joins with USING or NATURAL would lose keys; write ON a.k = b.k, and coalesce(a.k, b.k) AS k",
            ));
        }
        match &select.selection {
            Some(condition) => without_nulls(condition),
            None => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Clause> {
        const SAMPLE: &str = "samples are not supported; write WHERE random() < 0.1";
        ControlFlow::Break(match factor {
            TableFactor::Pivot { .. } => (
                "pivot",
                "PIVOT is not supported; write an aggregate with a FILTER for each column, as in \
                 SELECT sum(price) FILTER (WHERE kind = 'a') AS a",
            ),
            TableFactor::Unpivot { .. } => {
                ("unpivot", "UNPIVOT is not supported; write a SELECT for each column, with UNION ALL between them")
            }
            TableFactor::MatchRecognize { .. } => {
                ("match_recognize", "MATCH_RECOGNIZE is not supported; write window functions such as lag")
            }
            TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } => {
                ("tablesample", SAMPLE)
            }
            _ => return ControlFlow::Continue(()),
        })
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Clause> {
        match expr {
            Expr::Collate { .. } => ControlFlow::Break((
                "collate",
                "COLLATE is not supported: texts are compared by their characters' codes",
            )),
            // PostgreSQL and DuckDB read a power, others XOR.
            Expr::BinaryOp { op: BinaryOperator::BitwiseXor, .. } => ControlFlow::Break((
                "^",
                "^ is a power in some dialects and XOR in others; write power(a, b), or (a | b) - (a & b) for XOR",
            )),
            Expr::SimilarTo { .. } => ControlFlow::Break((
                "similar",
                "SIMILAR TO is not supported; write LIKE, or ~ with a regular expression such as '^(a|b).*$'",
            )),
            Expr::JsonAccess { .. } => ControlFlow::Break((
                ":",
                "u:field is not supported; write u ->> 'field' for its text, or u -> 'field' for its JSON",
            )),
            Expr::BinaryOp { op: BinaryOperator::DuckIntegerDivide | BinaryOperator::MyIntegerDivide, .. } => {
                ControlFlow::Break((
                    "//",
                    "there is no operator for whole division; a / b of whole numbers is whole, and trunc(a / b) of others",
                ))
            }
            Expr::Cast { data_type: ast::DataType::JSON | ast::DataType::JSONB, .. } => ControlFlow::Break((
                "json",
                "there is no type JSON: a text of JSON needs no cast; write u ->> 'field' for a text, or u -> 'field' for its JSON",
            )),
            Expr::AtTimeZone { time_zone, .. }
                if zone_of(time_zone).is_some_and(|zone| zone.parse::<Tz>().is_err()) =>
            {
                ControlFlow::Break((
                    "zone",
                    "there is no such time zone; write a name such as 'Europe/Berlin', 'UTC', or a difference such as '+05:30'",
                ))
            }
            Expr::AtTimeZone { time_zone, .. } if zone_of(time_zone).is_none() => {
                ControlFlow::Break(("zone", "AT TIME ZONE takes a constant, as in AT TIME ZONE 'Europe/Berlin'"))
            }
            Expr::BinaryOp { op: BinaryOperator::AtArrow, .. } => ControlFlow::Break((
                "@>",
                "@> is not supported for JSON; write json_contains(u, 'field') or u ->> 'field' = 'value'",
            )),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// The engine counts copies of rows wrongly in EXCEPT ALL and INTERSECT ALL.
fn all_rows(body: &SetExpr) -> ControlFlow<Clause> {
    use ast::{SetOperator, SetQuantifier};

    let SetExpr::SetOperation { op, set_quantifier, left, right } = body else { return ControlFlow::Continue(()) };
    if *set_quantifier == SetQuantifier::All && matches!(op, SetOperator::Except | SetOperator::Intersect) {
        return ControlFlow::Break((
            "all",
            "EXCEPT ALL and INTERSECT ALL are not supported; number the copies with row_number() OVER (PARTITION BY …), and leave out ALL",
        ));
    }
    all_rows(left)?;
    all_rows(right)
}

/// Whether the engine's join has NULL as the key of a row that only the right table has.
fn loses_keys(join: &ast::Join) -> bool {
    use ast::JoinConstraint::{Natural, Using};
    use ast::JoinOperator::{FullOuter, Right, RightOuter};

    let (Right(constraint) | RightOuter(constraint) | FullOuter(constraint)) = &join.join_operator else {
        return false;
    };
    matches!(constraint, Using(_) | Natural)
}

/// `NOT IN (SELECT …)`, which is never true if the subquery has a NULL. The engine knows that only where the condition is a term of AND.
fn without_nulls(condition: &Expr) -> ControlFlow<Clause> {
    match condition {
        Expr::Nested(inner) => without_nulls(inner),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            without_nulls(left)?;
            without_nulls(right)
        }
        Expr::InSubquery { expr, .. } if !matches!(expr.as_ref(), Expr::Value(_)) => ControlFlow::Continue(()),
        other => other.visit(&mut Negated { queries: 0 }),
    }
}

/// Looks for `NOT IN (SELECT …)` outside subqueries.
struct Negated {
    queries: usize,
}

impl Visitor for Negated {
    type Break = Clause;

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<Clause> {
        self.queries += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<Clause> {
        self.queries -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Clause> {
        match expr {
            Expr::InSubquery { negated: true, .. } if self.queries == 0 => ControlFlow::Break((
                "in",
                "NOT IN (SELECT …) can stand in WHERE by itself or beside AND only; write NOT EXISTS (SELECT 1 FROM b WHERE b.k = a.k)",
            )),
            _ => ControlFlow::Continue(()),
        }
    }
}

fn has_constraints(table: &ast::CreateTable) -> bool {
    use ast::ColumnOption::{Comment, Null};

    !table.constraints.is_empty()
        || table
            .columns
            .iter()
            .flat_map(|column| &column.options)
            .any(|option| !matches!(option.option, Null | Comment(_)))
}

fn zone_of(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(ast::ValueWithSpan { value: ast::Value::SingleQuotedString(zone), .. }) => Some(zone),
        _ => None,
    }
}
