//! What differs from the parser's generic dialect.
//!
//! Input: a parsed statement. Output: the statement in which
//!
//! - JSON operators bind more closely than comparisons, as in PostgreSQL: `meta ->> 'a' = 'x'` is `(meta ->> 'a') = 'x'`, and from left to
//!   right with `||`: `meta ->> 'a' || 'x'` is `(meta ->> 'a') || 'x'`. The generic
//!   dialect reads it as `meta ->> ('a' = 'x')`, which no type satisfies. Its precedences cannot be set without a dialect that repeats
//!   all other properties of the generic one, so the tree is rotated after parsing. Parentheses are nodes of the tree and stay.
//! - The first bound of `BETWEEN a ->> 'b' AND …` may be such an operation, too. The parser expects AND after `a`, so the bound is put in
//!   parentheses before parsing.
//! - A path of PostgreSQL, as in `meta #>> '{a,0}'`, is a chain of operations: `meta -> 'a' ->> 0`.
//! - `meta#>>'{a}'` without a blank, which the tokenizer reads as the name `meta#`, is the same operation.
//! - `now() AT TIME ZONE 'Europe/Oslo'` keeps the instant, also for `current_timestamp` and values of TIMESTAMPTZ. They have no zone here, and
//!   the engine reads a time without a zone as local time.
//! - A whole number beyond 64 bits is a DECIMAL, as in PostgreSQL, not the nearest DOUBLE.
//! - `1_000_000` is a number.
//! - `SET TIME ZONE 'Europe/Berlin'` is `SET timezone = 'Europe/Berlin'`.

use std::mem;
use std::ops::ControlFlow;

use datafusion::sql::parser::{CopyToSource, Statement};
use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, CastKind, ExactNumberInfo, Expr, Ident, ObjectName, Set, Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

/// Adapts what the parser would not accept.
pub fn adapt_tokens(tokens: &mut Vec<TokenWithSpan>) {
    join_numbers(tokens);
    split_operators(tokens);
    enclose_bounds(tokens);
}

/// Joins the parts of a number with underscores between its digits, which the tokenizer reads as a number and an alias.
fn join_numbers(tokens: &mut Vec<TokenWithSpan>) {
    let mut i = 1;
    while i < tokens.len() {
        let joined = match (&tokens[i - 1].token, &tokens[i].token) {
            (Token::Number(number, false), Token::Word(word)) if word.quote_style.is_none() => {
                let groups = word.value.strip_prefix('_').filter(|rest| !rest.is_empty());
                let digits = groups.filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_'));
                digits.map(|rest| format!("{number}{}", rest.replace('_', "")))
            }
            _ => None,
        };
        match joined {
            Some(number) => {
                tokens[i - 1].token = Token::Number(number, false);
                tokens.remove(i);
            }
            None => i += 1,
        }
    }
}

/// Separates the `#` of an operator from the name before it.
fn split_operators(tokens: &mut [TokenWithSpan]) {
    for i in 1..tokens.len() {
        let operator = match tokens[i].token {
            Token::Gt => Token::HashArrow,
            Token::ShiftRight => Token::HashLongArrow,
            _ => continue,
        };
        if let Token::Word(word) = &mut tokens[i - 1].token
            && word.quote_style.is_none()
            && let Some(name) = word.value.strip_suffix('#').filter(|name| !name.is_empty())
        {
            tokens[i - 1].token = Token::make_word(name, None);
            tokens[i].token = operator;
        }
    }
}

/// Puts the first bound of a BETWEEN in parentheses if it has a JSON operator.
fn enclose_bounds(tokens: &mut Vec<TokenWithSpan>) {
    // Bounds that are open: the index after BETWEEN, the depth of parentheses, the depth of CASE, and whether it has a JSON operator.
    let mut open: Vec<(usize, usize, usize, bool)> = Vec::new();
    let (mut depth, mut cases) = (0_usize, 0_usize);
    let mut inserted: Vec<(usize, Token)> = Vec::new();
    for (i, TokenWithSpan { token, .. }) in tokens.iter().enumerate() {
        let here = open.last().is_some_and(|bound| (bound.1, bound.2) == (depth, cases));
        match token {
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => {
                depth = depth.saturating_sub(1);
                // A bound that was never closed is a fault of the text, which the parser names.
                open.retain(|bound| bound.1 <= depth);
            }
            Token::SemiColon => open.clear(),
            Token::Arrow | Token::LongArrow | Token::HashArrow | Token::HashLongArrow if here => {
                if let Some(bound) = open.last_mut() {
                    bound.3 = true;
                }
            }
            Token::Word(word) if word.quote_style.is_none() => match word.keyword {
                Keyword::BETWEEN => open.push((i + 1, depth, cases, false)),
                Keyword::CASE => cases += 1,
                Keyword::END => cases = cases.saturating_sub(1),
                Keyword::AND if here => {
                    if let Some((from, _, _, true)) = open.pop() {
                        inserted.extend([(from, Token::LParen), (i, Token::RParen)]);
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
    inserted.sort_by_key(|(at, _)| *at);
    for (at, token) in inserted.into_iter().rev() {
        let span = tokens.get(at).map_or_else(Span::empty, |next| next.span);
        tokens.insert(at, TokenWithSpan { token, span });
    }
}

/// Adapts all expressions and queries of a statement.
pub fn adapt(statement: &mut Statement) {
    match statement {
        Statement::Statement(inner) => {
            if let ast::Statement::Set(set) = inner.as_mut() {
                name_variable(set);
            }
            adapt_expressions(inner.as_mut());
        }
        Statement::Explain(explain) => adapt(&mut explain.statement),
        Statement::CopyTo(copy) => {
            if let CopyToSource::Query(query) = &mut copy.source {
                adapt_expressions(query.as_mut());
            }
        }
        Statement::CreateExternalTable(_) | Statement::Reset(_) => {}
    }
}

/// Names the variable of `SET TIME ZONE`, which the planner does not know.
fn name_variable(set: &mut Set) {
    if let Set::SetTimeZone { local: false, value } = set
        && !matches!(value, Expr::Identifier(_))
    {
        *set = Set::SingleAssignment {
            scope: None,
            hivevar: false,
            variable: ObjectName::from(vec![Ident::new("timezone")]),
            values: vec![mem::replace(value, nothing())],
        };
    }
}

struct Adapt;

impl VisitorMut for Adapt {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        // A comparison on the right: a ->> (b = c) becomes (a ->> b) = c.
        if let Expr::BinaryOp { op, right, .. } = expr
            && is_json(op)
            && first_operand(right).is_some()
        {
            let mut comparison = mem::replace(right.as_mut(), nothing());
            if let Some(first) = innermost(&mut comparison, first_operand) {
                exchange(expr, first, |expr| match expr {
                    Expr::BinaryOp { right, .. } => Some(right),
                    _ => None,
                });
            }
            *expr = comparison;
            // The comparison may have a JSON operation of its own on the left now, whose left side is a comparison.
            if let Some(first) = innermost(expr, first_operand) {
                rotate_left(first);
            }
        }
        rotate_left(expr);
        exact_literal(expr);
        ControlFlow::Continue(())
    }
}

/// Follows paths and zones, after the operations have their operands.
struct Paths;

impl VisitorMut for Paths {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        follow_path(expr);
        keep_instant(expr);
        ControlFlow::Continue(())
    }
}

fn adapt_expressions(part: &mut impl VisitMut) {
    let _ = part.visit(&mut Adapt);
    let _ = part.visit(&mut Paths);
}

/// A constant path in braces, which the operators take for one key, becomes a chain of operations.
fn follow_path(expr: &mut Expr) {
    let Expr::BinaryOp { left, op: op @ (BinaryOperator::HashArrow | BinaryOperator::HashLongArrow), right } = expr
    else {
        return;
    };
    let Expr::Value(ast::ValueWithSpan { value: Value::SingleQuotedString(path), span }) = right.as_ref() else {
        return;
    };
    let Some(path) = path.strip_prefix('{').and_then(|path| path.strip_suffix('}')) else { return };
    if path.trim().is_empty() {
        // The path of the document itself.
        *expr = mem::replace(left.as_mut(), nothing());
        return;
    }
    let keys: Vec<&str> = path.split(',').map(|key| key.trim().trim_matches('"')).collect();
    let value = |key: &str| match key.parse::<i64>() {
        Ok(_) => Value::Number(key.to_owned(), false),
        Err(_) => Value::SingleQuotedString(key.to_owned()),
    };
    let mut chain = mem::replace(left.as_mut(), nothing());
    for (i, key) in keys.iter().enumerate() {
        let is_text = *op == BinaryOperator::HashLongArrow && i + 1 == keys.len();
        chain = Expr::BinaryOp {
            left: Box::new(chain),
            op: if is_text { BinaryOperator::LongArrow } else { BinaryOperator::Arrow },
            right: Box::new(Expr::Value(ast::ValueWithSpan { value: value(key), span: *span })),
        };
    }
    *expr = chain;
}

/// A time of which the text says that it is an instant gets a zone before it gets another one.
fn keep_instant(expr: &mut Expr) {
    const ZONED: ast::DataType = ast::DataType::Timestamp(None, ast::TimezoneInfo::WithTimeZone);
    const TZ: ast::DataType = ast::DataType::Timestamp(None, ast::TimezoneInfo::Tz);

    let Expr::AtTimeZone { timestamp, .. } = expr else { return };
    let mut inner = timestamp.as_ref();
    while let Expr::Nested(nested) = inner {
        inner = nested;
    }
    let is_instant = match inner {
        Expr::TypedString(ast::TypedString { data_type, .. }) | Expr::Cast { data_type, .. } => {
            *data_type == ZONED || *data_type == TZ
        }
        Expr::Function(call) => {
            let name = call.name.to_string();
            ["now", "current_timestamp"].iter().any(|now| name.eq_ignore_ascii_case(now))
        }
        _ => false,
    };
    if is_instant {
        let time = mem::replace(timestamp.as_mut(), nothing());
        let utc = Box::new(Expr::Value(Value::SingleQuotedString("UTC".to_owned()).into()));
        **timestamp = Expr::AtTimeZone { timestamp: Box::new(time), time_zone: utc };
    }
}

/// A whole number beyond 64 bits, which would become a DOUBLE, becomes a DECIMAL with all of its digits.
fn exact_literal(expr: &mut Expr) {
    let Expr::Value(value) = expr else { return };
    let Value::Number(text, _) = &value.value else { return };
    let digits = text.trim_start_matches('0');
    let is_wide = digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u64>().is_err();
    if let (true, Ok(precision @ 1..=38)) = (is_wide, u64::try_from(digits.len())) {
        let text = Value::SingleQuotedString(text.clone());
        *expr = Expr::Cast {
            kind: CastKind::Cast,
            expr: Box::new(Expr::Value(ast::ValueWithSpan { value: text, span: value.span })),
            data_type: ast::DataType::Decimal(ExactNumberInfo::PrecisionAndScale(precision, 0)),
            array: false,
            format: None,
        };
    }
}

/// A comparison on the left: (a = b) ->> c becomes a = (b ->> c).
fn rotate_left(expr: &mut Expr) {
    if let Expr::BinaryOp { op, left, .. } = expr
        && is_json(op)
        && last_operand(left).is_some()
    {
        let mut comparison = mem::replace(left.as_mut(), nothing());
        if let Some(last) = innermost(&mut comparison, last_operand) {
            exchange(expr, last, |expr| match expr {
                Expr::BinaryOp { left, .. } => Some(left),
                _ => None,
            });
        }
        *expr = comparison;
    }
}

/// Puts `operand` into the empty place of `operation`, and the operation into the place of the operand.
fn exchange(operation: &mut Expr, operand: &mut Expr, place: impl Fn(&mut Expr) -> Option<&mut Box<Expr>>) {
    mem::swap(operation, operand);
    // `operation` is the operand now, and `operand` the operation.
    if let Some(place) = place(operand) {
        **place = mem::replace(operation, nothing());
    }
}

fn nothing() -> Expr {
    Expr::Value(Value::Null.into())
}

/// Follows a chain of comparisons to its last link's operand.
fn innermost(expr: &mut Expr, next: fn(&mut Expr) -> Option<&mut Expr>) -> Option<&mut Expr> {
    let mut at = next(expr)?;
    while next(at).is_some() {
        // Borrowed twice, because a borrow that is returned in one branch lasts for the other too.
        at = next(at)?;
    }
    Some(at)
}

fn is_json(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::Arrow
            | BinaryOperator::LongArrow
            | BinaryOperator::HashArrow
            | BinaryOperator::HashLongArrow
            | BinaryOperator::Question
    )
}

fn is_comparison(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq
            | BinaryOperator::Spaceship
            | BinaryOperator::PGRegexMatch
            | BinaryOperator::PGRegexIMatch
            | BinaryOperator::PGRegexNotMatch
            | BinaryOperator::PGRegexNotIMatch
            | BinaryOperator::PGLikeMatch
            | BinaryOperator::PGILikeMatch
            | BinaryOperator::PGNotLikeMatch
            | BinaryOperator::PGNotILikeMatch
    )
}

/// The left operand of a comparison or of a predicate.
fn first_operand(expr: &mut Expr) -> Option<&mut Expr> {
    match expr {
        Expr::BinaryOp { left, op, .. } if is_comparison(op) || *op == BinaryOperator::StringConcat => Some(left),
        Expr::IsDistinctFrom(left, _) | Expr::IsNotDistinctFrom(left, _) => Some(left),
        Expr::Like { expr, .. }
        | Expr::ILike { expr, .. }
        | Expr::SimilarTo { expr, .. }
        | Expr::RLike { expr, .. }
        | Expr::Between { expr, .. }
        | Expr::InList { expr, .. }
        | Expr::InSubquery { expr, .. }
        | Expr::InUnnest { expr, .. }
        | Expr::IsNull(expr)
        | Expr::IsNotNull(expr)
        | Expr::IsTrue(expr)
        | Expr::IsNotTrue(expr)
        | Expr::IsFalse(expr)
        | Expr::IsNotFalse(expr)
        | Expr::IsUnknown(expr)
        | Expr::IsNotUnknown(expr) => Some(expr),
        _ => None,
    }
}

/// The right operand of a comparison or of a predicate, if it is the end of the text.
fn last_operand(expr: &mut Expr) -> Option<&mut Expr> {
    match expr {
        Expr::BinaryOp { right, op, .. } if is_comparison(op) => Some(right),
        Expr::Like { pattern, escape_char: None, .. }
        | Expr::ILike { pattern, escape_char: None, .. }
        | Expr::SimilarTo { pattern, escape_char: None, .. }
        | Expr::RLike { pattern, .. } => Some(pattern),
        Expr::Between { high, .. } => Some(high),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::parser::DFParserBuilder;
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;

    /// The tree of a condition without the nodes of parentheses, so that both forms can be compared.
    fn parsed(condition: &str) -> Statement {
        let sql = format!("SELECT {condition} FROM t WHERE {condition}");
        let mut tokens = Tokenizer::new(&GenericDialect {}, &sql).tokenize_with_location().unwrap();
        adapt_tokens(&mut tokens);
        let mut statements = DFParserBuilder::new(tokens).build().unwrap().parse_statements().unwrap();
        let mut statement = statements.pop_front().unwrap();
        adapt(&mut statement);
        let Statement::Statement(inner) = &mut statement else { panic!("{sql}") };
        let _ = inner.visit(&mut Bare);
        statement
    }

    struct Bare;

    impl VisitorMut for Bare {
        type Break = ();

        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            while let Expr::Nested(inner) = expr {
                *expr = mem::replace(inner.as_mut(), nothing());
            }
            ControlFlow::Continue(())
        }
    }

    #[test]
    fn json_operators_bind_more_closely_than_comparisons() {
        for (plain, meant) in [
            ("a ->> 'k' = 'x'", "(a ->> 'k') = 'x'"),
            ("'x' = a ->> 'k'", "'x' = (a ->> 'k')"),
            ("a -> 'b' ->> 'c' <> 'x'", "((a -> 'b') ->> 'c') <> 'x'"),
            ("a -> 'b' = c -> 'd'", "(a -> 'b') = (c -> 'd')"),
            ("a -> 'b' ->> 'e' = c -> 'd' ->> 'f'", "((a -> 'b') ->> 'e') = ((c -> 'd') ->> 'f')"),
            ("a ->> 'k' IS NOT NULL", "(a ->> 'k') IS NOT NULL"),
            ("a ->> 'k' = 'x' IS TRUE", "((a ->> 'k') = 'x') IS TRUE"),
            ("a ->> 'k' IN ('x', 'y')", "(a ->> 'k') IN ('x', 'y')"),
            ("a ->> 'k' NOT LIKE 'x%'", "(a ->> 'k') NOT LIKE 'x%'"),
            ("b LIKE a ->> 'k'", "b LIKE (a ->> 'k')"),
            ("a ->> 'k' BETWEEN 'x' AND 'y'", "(a ->> 'k') BETWEEN 'x' AND 'y'"),
            ("b BETWEEN 'x' AND a ->> 'k'", "b BETWEEN 'x' AND (a ->> 'k')"),
            ("b BETWEEN a ->> 'k' AND 'y'", "b BETWEEN (a ->> 'k') AND 'y'"),
            ("b NOT BETWEEN a -> 'j' ->> 'k' AND c ->> 'l'", "b NOT BETWEEN ((a -> 'j') ->> 'k') AND (c ->> 'l')"),
            (
                "b BETWEEN CASE WHEN c AND d THEN a ->> 'k' END AND e AND f BETWEEN 1 AND 2",
                "(b BETWEEN (CASE WHEN c AND d THEN (a ->> 'k') END) AND e) AND (f BETWEEN 1 AND 2)",
            ),
            ("b BETWEEN f(a ->> 'k') AND 'y' AND c", "b BETWEEN f(a ->> 'k') AND 'y' AND c"),
            ("a ->> 'k' = 'x' AND NOT b ->> 'l' = 'y' OR c", "((a ->> 'k') = 'x' AND NOT ((b ->> 'l') = 'y')) OR c"),
            ("a ->> 'k' = 'x' = b ->> 'l'", "((a ->> 'k') = 'x') = (b ->> 'l')"),
            ("f(a ->> 'k' = 'x') = b", "f((a ->> 'k') = 'x') = b"),
            ("CASE WHEN a -> 0 > 1 THEN 2 END", "CASE WHEN (a -> 0) > 1 THEN 2 END"),
            ("a ->> ('k' = 'x')", "a ->> ('k' = 'x')"),
            ("a #>> '{j, 0,k}' = 'x'", "(((a -> 'j') -> 0) ->> 'k') = 'x'"),
            ("a #> '{k}' IS NULL", "(a -> 'k') IS NULL"),
            ("a #>> '{}' = 'x'", "a = 'x'"),
            ("1_000_000 = a", "1000000 = a"),
            ("a#>'{k}' IS NULL", "(a -> 'k') IS NULL"),
            ("a#>>'{k}' = 'x'", "(a ->> 'k') = 'x'"),
            ("a ->> 'k' || 'x' || 'y'", "((a ->> 'k') || 'x') || 'y'"),
            ("a ->> 'k' || 'x' = b", "((a ->> 'k') || 'x') = b"),
            ("a ->> 'k' ~ 'x' AND b", "((a ->> 'k') ~ 'x') AND b"),
        ] {
            assert_eq!(parsed(plain), parsed(meant), "{plain}");
        }
        assert_ne!(parsed("a ->> 'k' = 'x'"), parsed("a ->> ('k' = 'x')"));
    }
}
