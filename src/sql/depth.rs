//! Rejects SQL that is nested too deeply before recursive code processes it.
//!
//! Input: a statement's text. Output: the position and reason if the nesting is too deep. Parser and planner process
//! expressions recursively, and a chain of thousands of `+` or parentheses would overflow the stack and end the
//! process.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::piece::Place;

/// Maximum nesting of parentheses, brackets and CASE.
const NESTED: usize = 48;
/// Maximum operators in one expression. A comma or a clause ends an expression.
const CHAINED: usize = 400;
/// Maximum sum of the longest expressions of all SELECTs, because the planner substitutes one into the other.
const TOGETHER: usize = 800;
/// Maximum SELECTs and JOINs in one statement, because each may be nested in all previous ones.
const SELECTS: usize = 200;
/// Maximum length of a statement in bytes.
const BYTES: usize = 1 << 20;

/// Checks a statement.
///
/// # Errors
/// The position and the reason, if a limit is exceeded.
pub fn check(text: &str) -> Result<(), (Place, String)> {
    if text.len() > BYTES {
        return Err((Place::START, format!("the statement has {} bytes; {BYTES} are allowed", text.len())));
    }
    let mut tokens = Vec::new();
    // Invalid tokens are reported by the parser.
    let _ = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location_into_buf(&mut tokens);
    let mut selects = 0;
    // The longest chain since the last SELECT, and the sum of the longest chains of the SELECTs before it.
    let (mut longest, mut together) = (0, 0);
    // Number of operators at each level of nesting.
    let mut chains = vec![0];
    for token in &tokens {
        let start = token.span.start;
        let place = Place { line: start.line as usize, column: start.column as usize };
        match meaning(&token.token) {
            Meaning::Open => chains.push(0),
            Meaning::Close => {
                chains.pop();
                if chains.is_empty() {
                    chains.push(0);
                }
            }
            Meaning::Operator => {
                if let Some(chain) = chains.last_mut() {
                    *chain += 1;
                    longest = longest.max(*chain);
                }
            }
            Meaning::Separator => {
                if let Some(chain) = chains.last_mut() {
                    *chain = 0;
                }
            }
            Meaning::Select => {
                selects += 1;
                together += longest;
                longest = 0;
            }
            Meaning::Other => {}
        }
        if chains.len() > NESTED + 1 {
            return Err((place, format!("the expression is nested too deep: {NESTED} levels are allowed")));
        }
        if chains.last().is_some_and(|chain| *chain > CHAINED) {
            return Err((place, format!("the expression is too long: {CHAINED} operators in a row are allowed")));
        }
        if together + longest > TOGETHER {
            let why = format!(
                "the expressions are too long: {TOGETHER} operators are allowed where SELECTs stand on each other"
            );
            return Err((place, why));
        }
        if selects > SELECTS {
            return Err((place, format!("the statement is too long: {SELECTS} SELECTs and JOINs are allowed")));
        }
    }
    Ok(())
}

enum Meaning {
    Open,
    Close,
    Operator,
    Separator,
    Select,
    Other,
}

fn meaning(token: &Token) -> Meaning {
    match token {
        Token::LParen | Token::LBracket | Token::LBrace => Meaning::Open,
        Token::RParen | Token::RBracket | Token::RBrace => Meaning::Close,
        Token::Comma | Token::SemiColon => Meaning::Separator,
        Token::Word(word) => match word.keyword {
            Keyword::CASE => Meaning::Open,
            Keyword::END => Meaning::Close,
            Keyword::SELECT | Keyword::JOIN => Meaning::Select,
            Keyword::AND | Keyword::OR | Keyword::NOT | Keyword::IS | Keyword::LIKE | Keyword::IN => Meaning::Operator,
            Keyword::FROM | Keyword::WHERE | Keyword::WHEN | Keyword::THEN | Keyword::ELSE | Keyword::ON => {
                Meaning::Separator
            }
            _ => Meaning::Other,
        },
        Token::Whitespace(_)
        | Token::EOF
        | Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::Placeholder(_)
        | Token::Period => Meaning::Other,
        // Every other token is an operator or rare.
        _ => Meaning::Operator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_passes() {
        for (_, text) in super::super::files::SHIPPED {
            check(text).unwrap();
        }
        let list: Vec<String> = (0..5000).map(|n| format!("{n} + 1")).collect();
        check(&format!("SELECT {}", list.join(", "))).unwrap();
        check(&format!("SELECT 1 IN ({})", list.join(", "))).unwrap();
        check(&format!("SELECT {}1{}", "(".repeat(NESTED), ")".repeat(NESTED))).unwrap();
        check("SELECT 'no end").unwrap();
        check(")))").unwrap();
    }

    #[test]
    fn what_is_too_deep_is_refused_where_it_gets_so() {
        let why = |text: String| check(&text).unwrap_err();
        let (place, words) = why(format!("SELECT\n{}1{}", "(".repeat(10_000), ")".repeat(10_000)));
        assert_eq!((place, words.contains("too deep")), (Place { line: 2, column: NESTED + 1 }, true));
        assert!(why(format!("SELECT 1{}", " + 1".repeat(2_000))).1.contains("400 operators"));
        assert!(why(format!("SELECT {}true", "NOT ".repeat(2_000))).1.contains("400 operators"));
        assert!(why(format!("SELECT {}1", "- ".repeat(2_000))).1.contains("400 operators"));
        assert!(why(format!("SELECT 1{}", "::INT".repeat(2_000))).1.contains("400 operators"));
        assert!(why(format!("SELECT {}1{}", "CASE WHEN true THEN ".repeat(60), " END".repeat(60))).1.contains("deep"));
        assert!(why(format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(2_000))).1.contains("200 SELECTs and JOINs"));
        assert!(
            why(format!("SELECT * FROM a{}", " JOIN a USING (b)".repeat(2_000))).1.contains("200 SELECTs and JOINs")
        );
        let stacked = format!("SELECT * FROM (SELECT 1{}), ", " + 1".repeat(300));
        assert!(why(format!("SELECT {}", stacked.repeat(3))).1.contains("800 operators"));
        assert!(why(format!("SELECT '{}'", "x".repeat(BYTES))).1.contains("bytes"));
    }
}
