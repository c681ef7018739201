//! `md5(text)` and `sha256(text)`: hashes of a text as hex digits, as in DuckDB. MD5 identifies texts and protects nothing.
//!
//! DataFusion has them behind a feature with three more hash functions and their crates.

use std::sync::Arc;

use datafusion::arrow::array::{AsArray as _, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::printable::hex;

/// The functions.
pub fn functions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    [Kind::Md5, Kind::Sha256].into_iter().map(|kind| {
        let signature = Signature::exact(vec![DataType::Utf8], Volatility::Immutable);
        Arc::new(ScalarUDF::from(TextHash { kind, signature }))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Md5,
    Sha256,
}

impl Kind {
    fn of(self, text: &str) -> String {
        match self {
            Self::Md5 => hex(&Md5::digest(text.as_bytes())),
            Self::Sha256 => hex(&Sha256::digest(text.as_bytes())),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TextHash {
    kind: Kind,
    signature: Signature,
}

impl ScalarUDFImpl for TextHash {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Md5 => "md5",
            Kind::Sha256 => "sha256",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let texts = ColumnarValue::values_to_arrays(&args.args)?;
        let texts = texts.first().map(|texts| texts.as_string::<i32>().iter()).into_iter().flatten();
        let hashes: StringArray = texts.map(|text| text.map(|text| self.kind.of(text))).collect();
        Ok(ColumnarValue::Array(Arc::new(hashes)))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    #[tokio::test]
    async fn hashes_are_those_of_other_programs() {
        let ctx = SessionContext::new();
        functions().for_each(|function| ctx.register_udf(function.as_ref().clone()));
        let sql = "SELECT sha256('a') UNION ALL SELECT md5(a) FROM (VALUES ('a'), (NULL), ('₹')) AS t(a) UNION ALL SELECT md5('') UNION ALL SELECT md5(1)";
        let batches = ctx.sql(sql).await.unwrap().collect().await.unwrap();
        let mut hashes: Vec<String> = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_string::<i32>().iter().map(|hash| hash.unwrap_or("NULL").to_owned()))
            .collect();
        hashes.sort();
        // printf %s … | md5sum
        assert_eq!(
            hashes,
            [
                "0cc175b9c0f1b6a831c399e269772661",
                "990659031c9560e5b37f06b75ca7e94a",
                "NULL",
                "c4ca4238a0b923820dcc509a6f75849b",
                // printf a | sha256sum
                "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
                "d41d8cd98f00b204e9800998ecf8427e"
            ]
        );
    }
}
