//! Members of segmentations of entities: look-up by key, by a list of keys, and lists by cluster.
//!
//! Input: keys, and a model. Output: JSON, or the complete list of a cluster as NDJSON, CSV or Arrow. A look-up reads one row
//! group of the sorted file of members; open files and row groups are cached. Keys are personal data: they are in answers, and
//! in no error and no log line.

use std::sync::{Arc, Mutex, PoisonError};

use poem::Request;
use poem::http::StatusCode;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use serde_json::Value;
use tercile_store as store;

use super::asked::asked_model;
use super::bulk::{FORMS, kind};
use super::declared::NeedsMembers;
use super::language::Language;
use super::member_rows::{Answer, Listed, Member, MemberPage, Shape, keys_of, list, page, unreadable};
use super::negotiation;
use super::posted::Posted;
use super::problem::{Problem, problems};
use super::slice_number::SliceNumber;
use super::{State, Tags};
use crate::bulk::Format;
use crate::model::members::{Found, GroupCache, Members};
use crate::model::{Model, ModelRegistry};

/// Members of a page, unless another number is asked for, and at most.
const PAGE: u64 = 1_000;
const MAX_PAGE: u64 = 10_000;
/// Bytes of row groups in memory, and open files.
const CACHE: usize = 40 << 20;
const OPEN: usize = 16;
/// Bytes of an answer for one member, roughly.
const MEMBER_JSON: usize = 512;

problems! {
    /// Why there is no member.
    MemberFailure {
        /// There is no segmentation, version or member of this name, or the segmentation is by record.
        404,
        /// The records of this slice cannot be clustered; the detail says why.
        409,
        /// The members of this version are deleted.
        410,
        /// A parameter does not fit, or the key has several columns.
        422,
        /// There is no model for this slice yet, or its members cannot be read.
        503,
    }
}

problems! {
    /// Why there are no members.
    MembersFailure {
        /// The body is not JSON.
        400,
        /// There is no segmentation or version of this name, or the segmentation is by record.
        404,
        /// The records of this slice cannot be clustered; the detail says why.
        409,
        /// The members of this version are deleted.
        410,
        /// Too many keys, or too many bytes.
        413,
        /// The body is not sent as JSON.
        415,
        /// A parameter or a key does not fit; `index` names the key by its place.
        422,
        /// There is no model for this slice yet, or its members cannot be read.
        503,
    }
}

problems! {
    /// Why there is no list.
    MemberListFailure {
        /// There is no segmentation, version or cluster of this name, or the segmentation is by record.
        404,
        /// Members come in other media types than those that the Accept header names.
        406,
        /// The records of this slice cannot be clustered; the detail says why.
        409,
        /// The members of this version are deleted.
        410,
        /// A parameter does not fit.
        422,
        /// There is no model for this slice yet, or its members cannot be read; or as many lists as may are being sent.
        503,
    }
}

/// Caches of members.
pub struct MemberCache {
    groups: GroupCache,
    /// The file that was used last is the last.
    open: Mutex<Vec<(String, u64, Arc<Members>)>>,
}

impl Default for MemberCache {
    fn default() -> Self {
        Self { groups: GroupCache::new(CACHE), open: Mutex::default() }
    }
}

impl MemberCache {
    /// The members of a model.
    fn open(&self, store: &store::Store, model: &Model) -> Result<Arc<Members>, Problem> {
        let name = &model.segmentation;
        if model.entity.is_empty() {
            let detail = format!(
                "{name} is a segmentation of records, and has no members; one with -- entity: in its SQL file has"
            );
            return Err(Problem::not_found(detail));
        }
        let registry = ModelRegistry::new(store, name);
        let gone = || {
            let detail = format!(
                "the members of version {} of {name} are deleted; those of the last versions are kept (--keep-members), and \
                 tercile train makes those of a version that serves anew",
                model.version
            );
            Problem::new(StatusCode::GONE, detail)
        };
        // An open file outlives its name.
        if store.place().is_disk() && !registry.has_members(model.version) {
            return Err(gone());
        }
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let is = |one: &(String, u64, Arc<Members>)| one.0 == *name && one.1 == model.version;
        let mut open = lock();
        if let Some(at) = open.iter().position(is) {
            let known = open.remove(at);
            let members = Arc::clone(&known.2);
            open.push(known);
            return Ok(members);
        }
        drop(open);
        let members = registry.members(model).map_err(|error| unreadable(&error))?.ok_or_else(gone)?;
        let members = Arc::new(members);
        let mut open = lock();
        if open.len() >= OPEN {
            open.remove(0);
        }
        open.push((name.clone(), model.version, Arc::clone(&members)));
        Ok(members)
    }
}

pub struct MembersApi;

#[OpenApi]
#[allow(clippy::too_many_arguments, reason = "what a request may say is an argument each")]
impl MembersApi {
    /// The member with a key
    ///
    /// For segmentations of entities with one key column. The empty key, and keys that are longer than a path may be, are looked
    /// up by POST.
    #[oai(path = "/api/segments/:name/members/:key", method = "get", tag = "Tags::Members", operation_id = "getMember")]
    async fn member(
        &self,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// The entity's key, percent-encoded.
        key: Path<String>,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// A version: answer from its members, whatever serves now.
        as_of: Query<Option<u64>>,
        _scope: NeedsMembers,
    ) -> Result<Answer<Member>, MemberFailure> {
        let serving = asked_model(&state.live, &name.0, model.0, as_of.0)?;
        let work = move |state: &State| {
            let members = state.members.open(&state.store, &serving.model)?;
            if serving.model.entity.len() > 1 {
                let detail = format!(
                    "the key of {} has several columns; POST …/members takes such keys",
                    serving.model.segmentation
                );
                return Err(Problem::unprocessable(detail).field("key"));
            }
            let found = look_up(state, &members, &[vec![key.0]])?.pop().flatten();
            let found = found.ok_or_else(|| {
                let Model { segmentation, version, .. } = &serving.model;
                Problem::not_found(format!("{segmentation} has no member with this key in version {version}"))
                    .field("key")
            })?;
            Ok(Answer::json(&Shape::of(&serving, lang.0.as_ref()).member(&found.batch, found.row)?, &serving.model))
        };
        Ok(run(&state, work).await?)
    }

    /// The members with these keys
    ///
    /// A JSON array of up to 10,000 keys: values, or objects with a value for each column. Answers come in order, with null for
    /// unknown keys.
    #[oai(path = "/api/segments/:name/members", method = "post", tag = "Tags::Members", operation_id = "lookUpMembers")]
    async fn members(
        &self,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        keys: Posted<Value>,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// A version: answer from its members, whatever serves now.
        as_of: Query<Option<u64>>,
        _scope: NeedsMembers,
    ) -> Result<Answer<Vec<Option<Member>>>, MembersFailure> {
        let serving = asked_model(&state.live, &name.0, model.0, as_of.0)?;
        let work = move |state: &State| {
            let members = state.members.open(&state.store, &serving.model)?;
            let keys = keys_of(&keys.body.bytes, &serving.model.entity)?;
            let _hold = state.budget.hold(keys.len() * MEMBER_JSON)?;
            let shape = Shape::of(&serving, lang.0.as_ref());
            let found = look_up(state, &members, &keys)?.into_iter();
            let found = found.map(|found| found.map(|found| shape.member(&found.batch, found.row)).transpose());
            Ok(Answer::json(&found.collect::<Result<Vec<_>, _>>()?, &serving.model))
        };
        Ok(run(&state, work).await?)
    }

    /// The members of a cluster
    ///
    /// JSON comes in pages, in the order of the keys. NDJSON, CSV and Arrow give the complete list in one answer.
    #[oai(
        path = "/api/segments/:name/clusters/:cluster/members",
        method = "get",
        tag = "Tags::Members",
        operation_id = "listClusterMembers"
    )]
    async fn cluster(
        &self,
        request: &Request,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// The cluster's number, from 0.
        cluster: Path<u32>,
        /// The key after which the page begins: the `next` of the page before.
        after: Query<Option<String>>,
        /// Members of a page (1,000 if not given).
        #[oai(validator(minimum(value = "1"), maximum(value = "10000")))]
        limit: Query<Option<u64>>,
        /// Only members that were in another cluster in the model before (`previous`).
        moved: Query<Option<bool>>,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// A version: answer from its members, whatever serves now.
        as_of: Query<Option<u64>>,
        _scope: NeedsMembers,
    ) -> Result<Answer<MemberPage>, MemberListFailure> {
        let serving = asked_model(&state.live, &name.0, model.0, as_of.0)?;
        let format = negotiation::pick(request, &FORMS).ok_or_else(|| {
            let known = FORMS.map(|(_, kind)| kind).join(", ");
            Problem::not_acceptable(format!("members come as {known}; the Accept header names none of them"))
        })?;
        let paged = [("after", after.0.is_some()), ("limit", limit.0.is_some())].into_iter().find(|(_, given)| *given);
        if let (Some((field, _)), true) = (paged, format != Format::Json) {
            let detail = format!("{field} is for pages of JSON; {} gives the complete list", kind(format));
            return Err(Problem::unprocessable(detail).field(field).into());
        }
        let limit = limit.0.unwrap_or(PAGE).min(MAX_PAGE) as usize;
        let (listed, lang) = (Listed { cluster: cluster.0, moved: moved.0.unwrap_or_default() }, lang.0);
        let of_list = (Arc::clone(&serving), lang.clone());
        let checked = move |state: &State| {
            let members = state.members.open(&state.store, &serving.model)?;
            if listed.cluster >= serving.model.k {
                let (Model { segmentation, k, .. }, cluster) = (&serving.model, listed.cluster);
                let detail = format!("{segmentation} has no cluster {cluster}; its clusters are 0 to {}", k - 1);
                return Err(Problem::not_found(detail).field("cluster"));
            }
            if format != Format::Json {
                return Ok(Err(members));
            }
            let _hold = state.budget.hold(limit * MEMBER_JSON)?;
            let page = page(&members, &Shape::of(&serving, lang.as_ref()), listed, (after.0, limit))?;
            Ok(Ok(Answer::json(&page, &serving.model)))
        };
        match run(&state, checked).await? {
            Ok(page) => Ok(page),
            Err(members) => Ok(list(&state, members, of_list, listed, format).await?),
        }
    }
}

/// Runs work that reads files on a thread for it.
async fn run<T: Send + 'static>(
    state: &Arc<State>,
    work: impl FnOnce(&State) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let shared = Arc::clone(state);
    let done = state.turns.run(move || work(&shared)).await;
    done.unwrap_or_else(|| Err(Problem::unavailable("the answer was cut off; try again")))
}

fn look_up(state: &State, members: &Members, keys: &[Vec<String>]) -> Result<Vec<Option<Found>>, Problem> {
    let keys =
        members.keys(keys).map_err(|_| Problem::unprocessable("the keys do not fit the columns of the entity"))?;
    members.find(&keys, &state.members.groups).map_err(|error| unreadable(&error))
}
