//! The fields that `00_records.sql` declares.

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use tercile_store::record::Fields;

use super::RECORDS;
use super::fault::{Fault, Source};
use super::piece::{Piece, Place};

/// The columns of the `CREATE TABLE` in `00_records.sql`.
pub(super) fn fields_of(source: &Source<'_>, piece: &Piece<'_>, statement: &Statement) -> Result<Fields, Fault> {
    let table = match statement {
        Statement::Statement(inner) => match inner.as_ref() {
            ast::Statement::CreateTable(table) => table,
            _ => return Err(source.fault(piece.place, "it must be a CREATE TABLE records (…)")),
        },
        _ => return Err(source.fault(piece.place, "it must be a CREATE TABLE records (…)")),
    };
    if table.name.to_string() != RECORDS {
        let why = format!("the table must be called records, not {}", table.name);
        return Err(source.fault(piece.place, why));
    }
    let mut names: Vec<String> = Vec::new();
    for column in &table.columns {
        let start = column.name.span.start;
        let place = Place { line: start.line as usize, column: start.column as usize }.within(piece.place);
        let name = match column.name.quote_style {
            Some(_) => column.name.value.clone(),
            None => column.name.value.to_lowercase(),
        };
        let text =
            matches!(column.data_type, ast::DataType::Text | ast::DataType::Varchar(_) | ast::DataType::String(_));
        if !text {
            let why = format!("the field {name} must be TEXT: values are kept as they come, and typed by the views");
            return Err(source.fault(place, why));
        }
        if name.starts_with('_') {
            let why = format!("the field {name} begins with _, which is where the store's own columns live");
            return Err(source.fault(place, why));
        }
        if names.contains(&name) {
            return Err(source.fault(place, format!("the field {name} stands twice")));
        }
        names.push(name);
    }
    if names.is_empty() {
        return Err(source.fault(piece.place, "it declares no fields"));
    }
    Ok(Fields::new(names))
}
