//! Names and texts as SQL, and messages on one line.

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
use datafusion::sql::sqlparser::parser::Parser;

/// A message on one line.
pub fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An SQL identifier for any name, quoted only if necessary.
pub fn identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let keyword = || ALL_KEYWORDS.contains(&name.to_ascii_uppercase().as_str());
    if plain && (!keyword() || is_name(name)) { name.to_owned() } else { quote(name) }
}

/// Whether a keyword is read as a name without quotes, wherever a name can stand: most keywords are.
fn is_name(keyword: &str) -> bool {
    let sql = format!("SELECT {keyword}, {keyword} AS {keyword}, {keyword}.* FROM {keyword} CROSS JOIN {keyword}");
    let table = format!("CREATE TABLE t (a TEXT, {keyword} TEXT)");
    let parsed = |sql: &str| Parser::parse_sql(&GenericDialect {}, sql).ok().and_then(|mut all| all.pop());
    let Some(ast::Statement::Query(query)) = parsed(&sql) else { return false };
    let ast::SetExpr::Select(select) = query.body.as_ref() else { return false };
    let read = matches!(select.projection.first(), Some(ast::SelectItem::UnnamedExpr(ast::Expr::Identifier(_))));
    read && parsed(&table).is_some()
}

/// An SQL string.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A quoted SQL identifier for any name.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
