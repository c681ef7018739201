//! Detects columns of CSV files whose digits are a code and not a number: the zip code `01234` must not become 1234.
//!
//! Input: a table of CSV files and the column types inferred by DataFusion. Output: the same types, but text for each
//! numeric column with at least one value that has a zero before another digit. All rows are read, not a sample,
//! because a later value would lose its zeros without a message.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use object_store::{GetResultPayload, ObjectStoreExt as _};

/// Read size for local files in bytes.
const CHUNK: usize = 1 << 18;

/// The schema with text instead of numbers for columns of codes. `ending` is the file extension with its dot.
pub async fn as_text(
    ctx: &SessionContext,
    schema: &SchemaRef,
    url: &ListingTableUrl,
    ending: &str,
    delimiter: u8,
) -> Result<Schema, DataFusionError> {
    let mut codes = BTreeSet::new();
    if schema.fields().iter().any(|field| field.data_type().is_numeric()) {
        let store = ctx.runtime_env().object_store(url)?;
        let state = ctx.state();
        let mut files = url.list_all_files(&state, store.as_ref(), ending).await?;
        while let Some(file) = files.next().await {
            let mut scan = Scan::new(delimiter);
            match store.get(&file?.location).await?.payload {
                GetResultPayload::File(mut file, _) => {
                    let read = move || {
                        let mut chunk = vec![0; CHUNK];
                        loop {
                            match file.read(&mut chunk)? {
                                0 => return std::io::Result::Ok(scan.codes),
                                length => scan.see(&chunk[..length]),
                            }
                        }
                    };
                    let read = tokio::task::spawn_blocking(read).await;
                    codes.extend(read.map_err(|e| DataFusionError::External(e.into()))??);
                }
                GetResultPayload::Stream(mut chunks) => {
                    while let Some(chunk) = chunks.next().await {
                        scan.see(&chunk?);
                    }
                    codes.extend(scan.codes);
                }
            }
        }
    }
    let field = |(i, field): (usize, &Arc<Field>)| match field.data_type().is_numeric() && codes.contains(&i) {
        true => Arc::new(Field::new(field.name(), DataType::Utf8, field.is_nullable())),
        false => Arc::clone(field),
    };
    Ok(Schema::new(schema.fields().iter().enumerate().map(field).collect::<Vec<_>>()))
}

/// A pass over the bytes of a CSV file with a header.
struct Scan {
    delimiter: u8,
    /// True when the first byte of the header was seen, and when the whole header was seen.
    began: bool,
    in_rows: bool,
    quoted: bool,
    /// After a quote inside a quoted field: either the end of the field or the first half of an escaped quote.
    closing: bool,
    column: usize,
    value: Value,
    /// Columns with at least one value that has a zero before another digit.
    codes: BTreeSet<usize>,
}

/// The part of a value seen so far.
#[derive(Clone, Copy, PartialEq)]
enum Value {
    Nothing,
    Minus,
    Zero,
    Other,
}

impl Scan {
    fn new(delimiter: u8) -> Self {
        Self {
            delimiter,
            began: false,
            in_rows: false,
            quoted: false,
            closing: false,
            column: 0,
            value: Value::Nothing,
            codes: BTreeSet::new(),
        }
    }

    fn see(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let closing = std::mem::take(&mut self.closing);
            if self.quoted {
                match byte {
                    b'"' => (self.quoted, self.closing) = (false, true),
                    _ => self.value(byte),
                }
            } else if byte == b'"' && (closing || self.value == Value::Nothing) {
                self.quoted = true;
                self.began = true;
                if closing {
                    self.value(byte);
                }
            } else if byte == self.delimiter {
                self.began = true;
                self.column += 1;
                self.value = Value::Nothing;
            } else if matches!(byte, b'\n' | b'\r') {
                self.in_rows |= self.began;
                self.column = 0;
                self.value = Value::Nothing;
            } else {
                self.began = true;
                self.value(byte);
            }
        }
    }

    fn value(&mut self, byte: u8) {
        self.value = match (self.value, byte) {
            (Value::Nothing, b'-') => Value::Minus,
            (Value::Nothing | Value::Minus, b'0') => Value::Zero,
            (Value::Zero, b'0'..=b'9') => {
                if self.in_rows {
                    self.codes.insert(self.column);
                }
                Value::Other
            }
            _ => Value::Other,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(csv: &str) -> Vec<usize> {
        let mut whole = Scan::new(b',');
        whole.see(csv.as_bytes());
        let mut parts = Scan::new(b',');
        csv.as_bytes().chunks(1).for_each(|byte| parts.see(byte));
        assert_eq!(whole.codes, parts.codes, "however the bytes come");
        whole.codes.into_iter().collect()
    }

    #[test]
    fn a_zero_before_a_digit_makes_a_code() {
        assert_eq!(codes("zip,n\n01234,1\n00501,2\n"), [0]);
        assert_eq!(codes("a,b,c,d,e\n0,0.5,-0,10,2024-01-02\n"), Vec::<usize>::new());
        assert_eq!(codes("a,b,c\r\n-01,007.5,x\r\n1,2,03"), [0, 1, 2]);
        assert_eq!(codes("a,b\n\"01\",2\n"), [0]);
        assert_eq!(codes("a,b\n\"x,01\n,02\",2\n"), Vec::<usize>::new(), "inside quotes nothing begins");
        assert_eq!(codes("a,b\n\"\"\"01\",\"\"\n"), Vec::<usize>::new(), "the value begins with a quote");
        assert_eq!(codes("\n\n01,02\n1,2\n"), Vec::<usize>::new(), "a header is no value");
        assert_eq!(codes(""), Vec::<usize>::new());
    }
}
