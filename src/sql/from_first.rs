//! Queries that begin with FROM, as in DuckDB: `FROM t WHERE a > 1` is `SELECT * FROM t WHERE a > 1`.
//!
//! Input: the tokens of a statement. Output: the tokens with `SELECT *` before each such FROM, at its position. The parser's generic
//! dialect reads `FROM t` and `FROM t SELECT a` alone: nothing but a SELECT may follow the tables.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Word};

/// What has been read of the query at one depth of parentheses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Nothing, or tokens after which a query may begin.
    Start,
    /// The common table expressions of a WITH.
    With,
    Other,
}

/// Inserts `SELECT *` where a query begins with FROM and has no SELECT.
pub fn complete(tokens: &mut Vec<TokenWithSpan>) {
    let mut places = Vec::new();
    let mut levels = vec![Level::Start];
    // The last token that is no blank or comment.
    let mut previous: Option<&Token> = None;
    for (i, TokenWithSpan { token, .. }) in tokens.iter().enumerate() {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { return };
        match token {
            Token::Whitespace(_) => continue,
            Token::LParen => levels.push(Level::Start),
            Token::RParen if depth > 1 => {
                levels.pop();
                // As in SELECT * EXCEPT (a) FROM t.
                if let Some(level @ Level::Start) = levels.last_mut() {
                    *level = Level::Other;
                }
            }
            Token::SemiColon => *level = Level::Start,
            token => {
                *level = match (keyword(token), *level) {
                    (Keyword::FROM, Level::Start) => {
                        places.push(i);
                        Level::Other
                    }
                    // WITH a AS (…) FROM a
                    (Keyword::FROM, Level::With) if previous == Some(&Token::RParen) => {
                        places.push(i);
                        Level::Other
                    }
                    (Keyword::WITH, Level::Start) | (_, Level::With) if keyword(token) != Keyword::SELECT => {
                        Level::With
                    }
                    (Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::EXPLAIN | Keyword::AS, _) => {
                        Level::Start
                    }
                    (Keyword::ALL | Keyword::ANALYZE | Keyword::VERBOSE, Level::Start) => Level::Start,
                    _ => Level::Other,
                };
            }
        }
        previous = Some(token);
    }
    for at in places.into_iter().rev() {
        if selects(&tokens[at + 1..]) {
            continue;
        }
        let span = tokens[at].span;
        let select = Token::Word(Word { value: "SELECT".to_owned(), quote_style: None, keyword: Keyword::SELECT });
        tokens.splice(at..at, [select, Token::Mul].map(|token| TokenWithSpan { token, span }));
    }
}

/// Whether the query whose FROM precedes these tokens has a SELECT.
fn selects(tokens: &[TokenWithSpan]) -> bool {
    let mut depth = 0_usize;
    for TokenWithSpan { token, .. } in tokens {
        match token {
            Token::LParen => depth += 1,
            Token::RParen if depth == 0 => return false,
            Token::RParen => depth -= 1,
            Token::SemiColon => return false,
            token if depth == 0 => match keyword(token) {
                Keyword::SELECT => return true,
                Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT => return false,
                _ => {}
            },
            _ => {}
        }
    }
    false
}

fn keyword(token: &Token) -> Keyword {
    match token {
        Token::Word(word) => word.keyword,
        _ => Keyword::NoKeyword,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;

    #[test]
    fn from_alone_selects_all_columns() {
        for (sql, meant) in [
            ("FROM t", "SELECT * FROM t"),
            ("-- c\nfrom t;", "-- c\nSELECT * FROM t;"),
            ("FROM t WHERE a > 1 GROUP BY a", "SELECT * FROM t WHERE a > 1 GROUP BY a"),
            ("FROM t ORDER BY a LIMIT 2", "SELECT * FROM t ORDER BY a LIMIT 2"),
            (
                "SELECT b FROM (FROM t WHERE c) UNION ALL FROM u",
                "SELECT b FROM (SELECT * FROM t WHERE c) UNION ALL SELECT * FROM u",
            ),
            ("FROM t UNION SELECT 1", "SELECT * FROM t UNION SELECT 1"),
            (
                "WITH a AS (FROM t WHERE b) FROM a WHERE c",
                "WITH a AS (SELECT * FROM t WHERE b) SELECT * FROM a WHERE c",
            ),
            ("CREATE VIEW v AS FROM t", "CREATE VIEW v AS SELECT * FROM t"),
            ("EXPLAIN ANALYZE FROM t", "EXPLAIN ANALYZE SELECT * FROM t"),
            ("COPY (FROM t) TO 'x.csv'", "COPY (SELECT * FROM t) TO 'x.csv'"),
            ("SELECT a FROM t WHERE b IN (FROM u)", "SELECT a FROM t WHERE b IN (SELECT * FROM u)"),
        ] {
            assert_eq!(completed(sql), meant, "{sql}");
        }
        for same in [
            "FROM t SELECT a",
            "FROM t WHERE b SELECT a",
            "SELECT count(*) FROM t",
            "SELECT a AS b FROM t",
            "SELECT extract(year FROM a), a IS DISTINCT FROM b FROM t",
            "WITH a AS (SELECT 1) SELECT count(*) FROM a",
            "SELECT * EXCEPT (a) FROM t",
            "DELETE FROM t",
            "SELECT \"FROM\" FROM t",
            "SELECT 'FROM t'",
        ] {
            assert_eq!(completed(same), same);
        }
    }

    fn completed(sql: &str) -> String {
        let mut tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().unwrap();
        complete(&mut tokens);
        let text: String = tokens.iter().map(|token| token.token.to_string()).collect();
        // The inserted tokens have no blanks between them.
        text.replace("SELECT*from", "SELECT * FROM").replace("SELECT*FROM", "SELECT * FROM")
    }
}
