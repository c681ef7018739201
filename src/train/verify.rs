//! Verifies a model against its receipt by training again on the same data and comparing bit for bit.
//!
//! Input: the store, the SQL files and a model. Output: nothing if the new training gives the same model, otherwise the
//! differences. For a model of another training method (`receipt.method`) only the hash of its rows can be compared.

use std::fmt::Debug;

use tercile_store::{self as store, Store};

use super::dataset::{Input, Rows};
use super::{Job, Options, Refusal, SEED, Stream, rows, stream};
use crate::engine::{self, cluster::Engine};
use crate::model::{METHOD, Model, ModelRegistry, Predecessor, Receipt};
use crate::sql::{Files, Segmentation};

/// The difference between a model and its receipt, or the reason why they cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(
        "the store is fed from the topic {found}, the model was trained on {wanted}; choose the --store it was made in"
    )]
    Topic { found: String, wanted: String },
    #[error(
        "there is no SQL file of the segmentation {0} any more; bring it back, or choose the --sql it was trained with"
    )]
    NoSql(String),
    #[error(
        "the SQL changed since: the files of {name} hash to {found}, the receipt says {wanted}; bring the old files back, or choose the --sql it was trained with"
    )]
    Sql { name: String, found: String, wanted: String },
    #[error(
        "records are gone: the store holds {found} of the {wanted} records up to the receipt's offsets; bring its files back from a copy"
    )]
    Records { found: u64, wanted: u64 },
    #[error(
        "records are gone: retention let those before {before} expire, and {found} are left of the {wanted} that the receipt names; the model can't be verified any more, and answers as before"
    )]
    Expired { before: String, found: u64, wanted: u64 },
    #[error(
        "it was trained with the seed {found}, and this tercile trains with {SEED}; verify it with the tercile that made it"
    )]
    Seed { found: u64 },
    #[error("version {version}, {role}, can't be read: {why}; bring it back from a copy")]
    Earlier { version: u64, role: &'static str, why: store::Error },
    #[error(
        "the rows are others than it was trained on: they hash to {found}, the receipt says {wanted}; records were changed, perhaps by tercile reprocess, or the receipt was"
    )]
    Rows { found: String, wanted: String },
    #[error("the receipt says {wanted} for its {field}, training again says {found}; the receipt was changed{since}")]
    Receipt { field: &'static str, wanted: String, found: String, since: String },
    #[error("training again is refused: {0}")]
    Refused(String),
    #[error("{field} differs: {wanted} in the model, {found} when trained again; the model's file was changed{since}")]
    Model { field: String, wanted: String, found: String, since: String },
    #[error("the training was cut off: {0}")]
    Cut(String),
    #[error(
        "it was trained by method {made} (tercile {tercile}), and this tercile trains by method {METHOD}, which can give another model of the same rows, so only the rows are checked: {rows}; `tercile train` makes a model that can be verified, and the tercile that made this one verifies it"
    )]
    Method { made: u32, tercile: String, rows: RowsCheck },
}

/// The result of checking the rows of a model that cannot be compared.
#[derive(Debug)]
pub enum RowsCheck {
    /// Their hash is the receipt's hash.
    Same,
    /// The reason why they differ or cannot be checked.
    Failed(Box<Error>),
}

impl std::fmt::Display for RowsCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Same => f.write_str("they hash to what the receipt says"),
            Self::Failed(why) => write!(f, "{why}"),
        }
    }
}

/// Trains again and compares.
///
/// # Errors
/// The difference, or the reason why no comparison is possible. A model of another method is always an error
/// ([`Error::Method`]), which states whether its rows still match the receipt.
pub async fn verify(store: &Store, files: &Files, model: Model, options: &Options) -> Result<(), Error> {
    let (made, tercile) = (model.receipt.method, model.receipt.tercile.clone());
    let checked = check(store, files, model, options).await;
    if made == METHOD {
        return checked;
    }
    let rows = checked.map_or_else(|why| RowsCheck::Failed(Box::new(why)), |()| RowsCheck::Same);
    Err(Error::Method { made, tercile, rows })
}

/// Compares the rows with the receipt and, if the model has the current method, the model with the result of a new training.
async fn check(store: &Store, files: &Files, model: Model, options: &Options) -> Result<(), Error> {
    let receipt = &model.receipt;
    if model.seed != SEED {
        return Err(Error::Seed { found: model.seed });
    }
    let known = files.segmentations().any(|(view, _)| view.name == model.segmentation);
    if !known {
        return Err(Error::NoSql(model.segmentation));
    }
    let found = files.hash(&model.segmentation);
    if found != receipt.sql_hash {
        return Err(Error::Sql { name: model.segmentation.clone(), found, wanted: receipt.sql_hash.clone() });
    }
    let prefix = store.snapshot_until(&receipt.ends())?;
    let (found, topic) = (prefix.snapshot.rows(), &prefix.snapshot.topic);
    if !topic.is_empty() && *topic != receipt.topic {
        return Err(Error::Topic { found: topic.clone(), wanted: receipt.topic.clone() });
    }
    if found != receipt.n {
        return Err(gone(store, found, receipt.n)?);
    }
    let ctx = engine::open_within(&prefix.snapshot, files, options.limits(prefix.snapshot.rows())).await?;
    let segmentation = engine::each_segmentation(&ctx, files).await.named(&model.segmentation)?;
    let segmentation = segmentation.ok_or_else(|| Error::NoSql(model.segmentation.clone()))?;
    let (stream, cuts) = stream(&ctx, &prefix.snapshot).await.map_err(|e| Error::Refused(e.to_string()))?;
    let input = Input { ctx, snapshot: prefix.snapshot.clone(), files: files.clone(), cuts };
    let rows = rows(&input, &segmentation, (options, store)).await?;
    let (registry, mut options) = (ModelRegistry::new(store, &model.segmentation), options.clone());
    if !segmentation.entity.is_empty() {
        // Entities are always trained in this process.
        options.engine = Engine::Local;
    }
    options.solver = model.receipt.solver;
    let store = store.clone();
    let work = move || {
        let again = Again { registry: &registry, store: &store, model: &model, stream: &stream, options: &options };
        again.compare(&segmentation, rows.as_ref())
    };
    let compared = tokio::task::spawn_blocking(work).await.map_err(|e| Error::Cut(e.to_string()))?;
    drop(prefix);
    compared
}

/// The reason why there are fewer records than the receipt states.
fn gone(store: &Store, found: u64, wanted: u64) -> Result<Error, store::Error> {
    let mut before = Vec::new();
    for log in store.logs()? {
        before.extend(log.expired()?.map(|offset| format!("offset {offset} of partition {}", log.partition())));
    }
    let before = before.join(", ");
    Ok(if before.is_empty() { Error::Records { found, wanted } } else { Error::Expired { before, found, wanted } })
}

struct Again<'a> {
    registry: &'a ModelRegistry,
    store: &'a Store,
    model: &'a Model,
    stream: &'a Stream,
    options: &'a Options,
}

impl Again<'_> {
    fn compare(&self, segmentation: &Segmentation, all: &dyn Rows) -> Result<(), Error> {
        let refused = |refusal: Refusal| Error::Refused(refusal.to_string());
        let model = self.model;
        if model.receipt.method != METHOD {
            let rows = all.up_to(model.slice).map_err(refused)?;
            return same_rows(&model.receipt.rows_hash, &rows.hash());
        }
        let predecessor = self.predecessor()?;
        let before = self.before()?;
        let replaced = self.replaced()?;
        let job = Job {
            segmentation,
            slice: model.slice,
            stream: self.stream,
            store: self.store,
            options: self.options,
            predecessor: predecessor.as_ref(),
            replaced,
            before: before.as_ref(),
            earlier: None,
            newest: None,
            warm: before.as_ref(),
        };
        let rows = all.up_to(model.slice).map_err(refused)?;
        let receipt = job.receipt(rows.as_ref());
        self.same_receipt(&receipt)?;
        let again = job.fit(all, rows.as_ref(), receipt).map_err(refused)?.model;
        self.same_model(&again)
    }

    /// The model whose cluster numbers were kept.
    fn predecessor(&self) -> Result<Option<Model>, Error> {
        let Some(Predecessor { version, .. }) = self.model.receipt.predecessor else { return Ok(None) };
        let role = "whose cluster numbers it kept";
        self.registry.model(version).map(Some).map_err(|why| Error::Earlier { version, role, why })
    }

    /// The model with other features or another k, which made every cluster new.
    fn replaced(&self) -> Result<Option<Predecessor>, Error> {
        let Some(Predecessor { version, .. }) = self.model.receipt.replaced else { return Ok(None) };
        let role = "which it replaced";
        let replaced = self.registry.model(version).map_err(|why| Error::Earlier { version, role, why })?;
        let same = (&replaced.features, &replaced.entity, replaced.k)
            == (&self.model.features, &self.model.entity, self.model.k);
        Ok((!same && replaced.slice == self.model.slice).then(|| Predecessor::of(&replaced)))
    }

    /// The previous slice's model of the same training, whose centroids seeded one restart: the newest older version of that
    /// slice with the same stream. `None` if that slice was refused.
    fn before(&self) -> Result<Option<Model>, Error> {
        let (model, mut version) = (self.model, self.model.version);
        while model.slice > 1 && version > 1 {
            version -= 1;
            let role = "which may be the slice before of the same training";
            let read = self.registry.version(version).map_err(|why| Error::Earlier { version, role, why })?;
            let same = |found: &Model| found.slice == model.slice - 1 && found.receipt.same_stream(&model.receipt);
            if let Some(found) = read.filter(same) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// A further possible cause of a difference.
    fn since(&self) -> String {
        let (made, this) = (&self.model.receipt.tercile, env!("CARGO_PKG_VERSION"));
        if made == this { String::new() } else { format!(", or tercile {this} trains otherwise than {made} did") }
    }

    fn same_receipt(&self, again: &Receipt) -> Result<(), Error> {
        let was = &self.model.receipt;
        same_rows(&was.rows_hash, &again.rows_hash)?;
        let fields = [
            ("next offsets", shown(&was.next_offsets), shown(&again.next_offsets)),
            ("cut", shown(&was.cut), shown(&again.cut)),
            ("starts", shown(&was.starts), shown(&again.starts)),
            ("predecessor", shown(&was.predecessor), shown(&again.predecessor)),
            ("replaced model", shown(&was.replaced), shown(&again.replaced)),
        ];
        match fields.into_iter().find(|(_, was, again)| was != again) {
            Some((field, wanted, found)) => Err(Error::Receipt { field, wanted, found, since: self.since() }),
            None => Ok(()),
        }
    }

    fn same_model(&self, again: &Model) -> Result<(), Error> {
        let was = self.model;
        // Models of older builds neither count imputed rows nor have a baseline.
        let imputed = was.imputed.as_ref().and(again.imputed.as_ref());
        let baseline = was.baseline.as_ref().and(again.baseline.as_ref());
        // Debug prints the shortest text that identifies a double, so equal texts mean equal bits.
        let mut fields = vec![
            ("rows".to_owned(), shown(&was.rows), shown(&again.rows)),
            ("rows_left_out".to_owned(), shown(&was.rows_left_out), shown(&again.rows_left_out)),
            ("imputed".to_owned(), shown(&was.imputed.as_ref()), shown(&imputed)),
            ("entity".to_owned(), shown(&was.entity), shown(&again.entity)),
            ("features".to_owned(), shown(&was.features), shown(&again.features)),
            ("mean".to_owned(), shown(&was.mean), shown(&again.mean)),
            ("std".to_owned(), shown(&was.std), shown(&again.std)),
            ("scaling".to_owned(), shown(&was.scaling), shown(&again.scaling)),
            ("k".to_owned(), shown(&was.k), shown(&again.k)),
            ("the number of clusters".to_owned(), shown(&was.clusters.len()), shown(&again.clusters.len())),
        ];
        for (was, again) in was.clusters.iter().zip(&again.clusters) {
            let of = |what: &str| format!("the {what} of cluster {}", again.cluster);
            fields.push((of("number"), shown(&was.cluster), shown(&again.cluster)));
            fields.push((of("centroid"), shown(&was.centroid), shown(&again.centroid)));
            fields.push((of("size"), shown(&was.size), shown(&again.size)));
            fields.push((of("newness"), shown(&was.new), shown(&again.new)));
            fields.push((of("description"), shown(&was.descriptions), shown(&again.descriptions)));
            fields.push((of("words"), shown(&was.words), shown(&again.words)));
            fields.push((of("typical"), shown(&was.typical), shown(&again.typical)));
            fields.push((of("spread"), shown(&was.spread), shown(&again.spread)));
        }
        fields.push(("words_changed".to_owned(), shown(&was.words_changed), shown(&again.words_changed)));
        fields.push(("baseline".to_owned(), shown(&was.baseline.as_ref()), shown(&baseline)));
        // Models of older builds have no field for tiny clusters, and those without one have none either.
        let tiny = was.tiny.as_ref().and(again.tiny.as_ref());
        fields.push(("tiny".to_owned(), shown(&was.tiny.as_ref()), shown(&tiny)));
        fields.push(("inertia".to_owned(), shown(&was.inertia), shown(&again.inertia)));
        fields.push(("silhouette".to_owned(), shown(&was.silhouette), shown(&again.silhouette)));
        // Sums computed by a cluster are rounded differently each time.
        let exact = self.options.engine == Engine::Local;
        if exact {
            fields.push(("iterations".to_owned(), shown(&was.iterations), shown(&again.iterations)));
        }
        // If the previous slice was refused, the comparison used an older model that the receipt does not name.
        if again.moved.is_some() {
            fields.push(("moved".to_owned(), shown(&was.moved), shown(&again.moved)));
            fields.push(("moved_by".to_owned(), shown(&was.moved_by), shown(&again.moved_by)));
        }
        let differ = |was: &str, again: &str| if exact { was != again } else { !near(was, again) };
        match fields.into_iter().find(|(_, was, again)| differ(was, again)) {
            Some((field, wanted, found)) => Err(Error::Model { field, wanted, found, since: self.since() }),
            None => Ok(()),
        }
    }
}

fn same_rows(wanted: &str, found: &str) -> Result<(), Error> {
    if wanted == found {
        return Ok(());
    }
    Err(Error::Rows { found: found.to_owned(), wanted: wanted.to_owned() })
}

/// True if two texts are equal apart from numbers that differ by less than 1e-9.
fn near(was: &str, again: &str) -> bool {
    let parts = |text| str::split(text, |c: char| "[]{}(),: ".contains(c));
    let same = |(was, again): (&str, &str)| {
        let close = |(was, again): (f64, f64)| (was - again).abs() <= 1e-9 * was.abs().max(again.abs());
        was == again || was.parse().ok().zip(again.parse().ok()).is_some_and(close)
    };
    parts(was).count() == parts(again).count() && parts(was).zip(parts(again)).all(same)
}

fn shown(value: &impl Debug) -> String {
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn numbers_may_differ_in_the_tenth_digit_and_nothing_else_may() {
        assert!(near(r#"{"a": 1.0, "b": [2.5]}"#, r#"{"a": 1.0000000001, "b": [2.5]}"#));
        assert!(!near("[1.0]", "[1.00000001]"));
        assert!(!near("[1.0]", "[1.0, 1.0]"));
        assert!(!near(r#"{"a": 1.0}"#, r#"{"b": 1.0}"#));
        assert!(!near("[10000]", "[10001]"));
    }
}
