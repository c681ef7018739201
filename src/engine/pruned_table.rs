//! A table provider for the records of very many files.
//!
//! Input: files of one backend location that were written with the same fields. Output: plans that scan them.
//! DataFusion's listing table requests each file's size and keeps column statistics per file. Here both come from the
//! snapshot, and files outside the queried offsets, times or partitions are pruned before the scan starts.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, TimestampMillisecondArray, UInt64Array,
};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::{Column, DFSchema, ScalarValue, project_schema};
use datafusion::datasource::file_format::FileFormat as _;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::datasource::{TableProvider, TableType};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::conjunction;
use datafusion::physical_optimizer::pruning::{PruningPredicateBuilder, PruningStatistics};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use object_store::path::Path as Key;
use tercile_store::DataFile;

use super::sized_store;

/// The files of one location, in the order of the snapshot.
#[derive(Debug)]
pub struct PrunedTable {
    schema: SchemaRef,
    root: ObjectStoreUrl,
    files: Vec<PartitionedFile>,
    spans: Spans,
}

impl PrunedTable {
    /// A table of these files.
    ///
    /// # Errors
    /// If there are no files.
    pub fn new(files: &[&DataFile], schema: SchemaRef) -> std::result::Result<Self, String> {
        let [first, ..] = files else { return Err("there are no files".to_owned()) };
        let root =
            ObjectStoreUrl::parse(&sized_store::url(first)?[..url::Position::BeforePath]).map_err(|e| e.to_string())?;
        let file = |file: &&DataFile| {
            let key = Key::from_url_path(sized_store::url(file)?.path()).map_err(|e| e.to_string())?;
            // The key is used as it is: escaping it again would change it.
            let mut known = PartitionedFile::new("", file.size);
            known.object_meta.location = key;
            Ok(known)
        };
        let spans = Spans::of(files);
        Ok(Self { schema, root, files: files.iter().map(file).collect::<std::result::Result<_, String>>()?, spans })
    }

    /// The files that may contain rows matching the filters.
    fn wanted(&self, state: &dyn Session, filters: &[Expr]) -> Result<Vec<PartitionedFile>> {
        let columns = DFSchema::try_from(Arc::clone(&self.schema))?;
        // Filters that are unknown before execution, such as subqueries, do not prune.
        let known = filters.iter().filter_map(|filter| state.create_physical_expr(filter.clone(), &columns).ok());
        let schema = Arc::clone(&self.schema);
        let pruning = PruningPredicateBuilder::new().with_file_schema(schema).build(conjunction(known));
        match pruning.and_then(|pruning| pruning.prune(&self.spans).ok()) {
            Some(wanted) => Ok(self.files.iter().zip(wanted).filter(|of| of.1).map(|of| of.0.clone()).collect()),
            None => Ok(self.files.clone()),
        }
    }
}

#[async_trait]
impl TableProvider for PrunedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let files = self.wanted(state, filters)?;
        if files.is_empty() {
            return Ok(Arc::new(EmptyExec::new(project_schema(&self.schema, projection)?)));
        }
        let groups = FileGroup::new(files).split_files(state.config().target_partitions());
        let format = ParquetFormat::default();
        let source = format.file_source(TableSchema::builder(Arc::clone(&self.schema)).build());
        let scan = FileScanConfigBuilder::new(self.root.clone(), source)
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        format.create_physical_plan(state, scan).await
    }
}

/// The partition and the ranges of offsets and times of each file.
#[derive(Debug)]
struct Spans {
    rows: ArrayRef,
    none: ArrayRef,
    partitions: ArrayRef,
    offsets: [ArrayRef; 2],
    /// Unknown for some files.
    times: [ArrayRef; 2],
    timeless: ArrayRef,
}

impl Spans {
    fn of(files: &[&DataFile]) -> Self {
        let times = |end: fn((i64, i64)) -> i64| {
            let times = files.iter().map(|file| file.bounds.and_then(|bounds| bounds.times).map(end));
            Arc::new(times.collect::<TimestampMillisecondArray>().with_timezone("UTC")) as ArrayRef
        };
        let offsets = |end: fn(&DataFile) -> i64| {
            Arc::new(files.iter().map(|file| end(file)).collect::<Int64Array>()) as ArrayRef
        };
        Self {
            rows: Arc::new(files.iter().map(|file| file.rows).collect::<UInt64Array>()),
            none: Arc::new(files.iter().map(|_| 0).collect::<UInt64Array>()),
            partitions: Arc::new(files.iter().map(|file| file.partition).collect::<Int32Array>()),
            offsets: [offsets(|file| file.start), offsets(|file| file.next - 1)],
            times: [times(|(first, _)| first), times(|(_, last)| last)],
            timeless: Arc::new(files.iter().map(|file| Some(file.bounds?.timeless)).collect::<UInt64Array>()),
        }
    }

    /// Minimum, maximum and null count.
    fn column(&self, column: &Column) -> Option<([&ArrayRef; 2], &ArrayRef)> {
        match column.name() {
            "_partition" => Some(([&self.partitions; 2], &self.none)),
            "_offset" => Some((self.offsets.each_ref(), &self.none)),
            "_timestamp" => Some((self.times.each_ref(), &self.timeless)),
            _ => None,
        }
    }
}

impl PruningStatistics for Spans {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column).map(|([min, _], _)| Arc::clone(min))
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column).map(|([_, max], _)| Arc::clone(max))
    }

    fn num_containers(&self) -> usize {
        self.rows.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column).map(|(_, missing)| Arc::clone(missing))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::clone(&self.rows))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use datafusion::arrow::array::AsArray as _;
    use datafusion::arrow::datatypes::Int64Type;
    use datafusion::prelude::SessionContext;
    use tercile_store::Store;
    use tercile_store::batch::{self, Batch, Record};
    use tercile_store::record::{self, Fields};

    use super::*;

    /// Ten files of ten records, one second apart. In each partition the third file has no times, and the fourth has
    /// one record without a time.
    fn filled(store: &Store) {
        store.claim("products", "id", 2).unwrap();
        let fields = Fields::new(vec!["a".into()]);
        for partition in [0, 1] {
            let log = store.log("products", partition);
            log.begin(0).unwrap();
            for start in (0..50).step_by(10) {
                let mut batch = Batch::new(partition, &fields);
                for offset in start..start + 10 {
                    let timed = start != 20 && (start != 30 || offset != 35);
                    let timestamp = timed.then_some(offset * 1000 + i64::from(partition));
                    let record = Record { offset, timestamp, key: None, payload: Some(b"{}") };
                    batch.push(&record, std::iter::empty(), &record::decode(Some(b"{}"), &fields), Instant::now());
                }
                log.publish(&batch.take().unwrap().unwrap().records, start, start + 10).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn files_that_a_query_does_not_need_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        // A name that URL encoding changes.
        let store = Store::open(&dir.path().join("a store, 100 %25")).unwrap();
        filled(&store);
        let mut snapshot = store.snapshot().unwrap();
        assert_eq!(snapshot.files.len(), 10);
        // Only the offsets are known for a file with several row groups.
        snapshot.files[1].bounds = None;
        let ctx = SessionContext::new();
        sized_store::register(&ctx, &snapshot.files).unwrap();
        let files: Vec<&DataFile> = snapshot.files.iter().collect();
        let many = Arc::new(PrunedTable::new(&files, batch::schema(&files[0].fields)).unwrap());
        ctx.register_table("many", many).unwrap();
        for (condition, records, opened) in [
            ("true", 100, 10),
            ("_offset = 19", 2, 2),
            ("_offset = 20", 2, 2),
            ("_offset IN (3, 44, 99)", 4, 4),
            ("_partition = 1 AND _offset >= 30", 20, 2),
            ("_partition > 1", 0, 0),
            ("_offset < 0 OR _offset >= 50", 0, 0),
            ("_timestamp >= to_timestamp_millis(40000)", 20, 3),
            ("_timestamp BETWEEN to_timestamp_millis(9000) AND to_timestamp_millis(10000)", 3, 3),
            ("_timestamp IS NULL", 22, 5),
            ("_timestamp IS NOT NULL", 78, 8),
            ("a IS NOT NULL", 0, 10),
            ("_offset + 0 = 17", 2, 10),
            ("_partition = 0 AND _offset > (SELECT 45)", 4, 5),
        ] {
            let frame = ctx.sql(&format!("SELECT _offset FROM many WHERE {condition}")).await.unwrap();
            let plan = frame.clone().create_physical_plan().await.unwrap();
            let shown = datafusion::physical_plan::displayable(plan.as_ref()).indent(true).to_string();
            assert_eq!(shown.matches(".parquet").count(), opened, "{condition}: {shown}");
            assert_eq!(frame.count().await.unwrap(), records, "{condition}");
        }
        let sum = ctx.sql("SELECT sum(_offset) FROM many LIMIT 1").await.unwrap().collect().await.unwrap();
        assert_eq!(sum[0].column(0).as_primitive::<Int64Type>().value(0), 2 * (0..50).sum::<i64>());
    }
}
