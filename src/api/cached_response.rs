//! Cache of serialised responses, and request coalescing.
//!
//! Input: a model version, which is immutable, and a function that makes its response. Output: the response bytes, shared by
//! all requests. Responses that change are made anew, once for all concurrent requests.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use poem::{IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::payload::{Json, Payload as _};
use poem_openapi::registry::{MetaResponses, Registry};
use poem_openapi::types::{ToJSON, Type};

use super::State;
use super::budget::Hold;
use super::problem::Problem;
use crate::model::Model;

/// Maximum number of cached responses.
const KEPT: usize = 64;

/// LRU cache of responses of one kind, by model version.
#[derive(Default)]
pub struct ReadyAnswers {
    /// The most recently used response is last.
    kept: Mutex<Vec<(Key, Bytes)>>,
    /// Held while a response is made: making one is CPU-bound, and waiting requests mostly want the same one.
    making: tokio::sync::Mutex<()>,
}

#[derive(PartialEq)]
struct Key {
    segmentation: String,
    version: u64,
    trained_at: String,
}

impl Key {
    fn is_of(&self, model: &Model) -> bool {
        self.version == model.version && self.segmentation == model.segmentation && self.trained_at == model.trained_at
    }
}

/// Bytes of a response with their hold on the budget.
struct Kept {
    bytes: Vec<u8>,
    _hold: Hold,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl ReadyAnswers {
    /// Response about a model, made by `make` if it is not cached.
    ///
    /// # Errors
    /// The error of `make`; 503 if the memory budget is exhausted.
    pub async fn get<T: ToJSON>(
        &self,
        state: &State,
        model: &Model,
        make: impl FnOnce(&Model) -> Result<T, Problem> + Send + 'static,
    ) -> Result<Bytes, Problem> {
        if let Some(ready) = self.find(model) {
            return Ok(ready);
        }
        let _one = self.making.lock().await;
        if let Some(ready) = self.find(model) {
            return Ok(ready);
        }
        let of = model.clone();
        let made = state.turns.run(move || Ok(make(&of)?.to_json_string().into_bytes())).await;
        let bytes: Vec<u8> = made.unwrap_or_else(|| Err(Problem::unavailable("the answer was cut off; try again")))?;
        let hold = state.budget.hold(bytes.len())?;
        let ready = Bytes::from_owner(Kept { bytes, _hold: hold });
        self.keep(model, ready.clone(), state.budget.limit() / 8);
        Ok(ready)
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Key, Bytes)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, model: &Model) -> Option<Bytes> {
        let mut kept = self.kept();
        let place = kept.iter().position(|(key, _)| key.is_of(model))?;
        let found = kept.remove(place);
        let ready = found.1.clone();
        kept.push(found);
        Some(ready)
    }

    /// Caches a response and evicts old ones beyond [`KEPT`] responses or `most` bytes in total.
    fn keep(&self, model: &Model, ready: Bytes, most: usize) {
        let Model { segmentation, version, trained_at, .. } = model;
        let key = Key { segmentation: segmentation.clone(), version: *version, trained_at: trained_at.clone() };
        let mut kept = self.kept();
        kept.push((key, ready));
        while kept.len() > KEPT || kept.iter().map(|(_, ready)| ready.len()).sum::<usize>() > most {
            kept.remove(0);
        }
    }
}

/// Value that is computed once for all concurrent waiters.
pub struct Coalesced<T>(tokio::sync::Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Default for Coalesced<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::default())
    }
}

impl<T> Coalesced<T> {
    /// Result of `make`, or of another caller's `make` that began after this call.
    pub async fn get(&self, make: impl Future<Output = T>) -> Arc<T> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((began, made)) = &*last
            && *began >= asked
        {
            return Arc::clone(made);
        }
        let began = Instant::now();
        let made = Arc::new(make.await);
        *last = Some((began, Arc::clone(&made)));
        made
    }
}

/// JSON response that is already serialised.
pub struct Written<T> {
    text: Bytes,
    of: PhantomData<fn() -> T>,
}

impl<T> From<Bytes> for Written<T> {
    fn from(text: Bytes) -> Self {
        Self { text, of: PhantomData }
    }
}

impl<T: Type> IntoResponse for Written<T> {
    fn into_response(self) -> Response {
        Response::builder().content_type(Json::<T>::CONTENT_TYPE).body(self.text)
    }
}

impl<T: Type + ToJSON> ApiResponse for Written<T> {
    fn meta() -> MetaResponses {
        Json::<T>::meta()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_share_what_is_made_after_they_came() {
        let (coalesced, made) = (Coalesced::default(), AtomicU32::new(0));
        let make = || async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            made.fetch_add(1, Ordering::SeqCst) + 1
        };
        let (first, others) = tokio::join!(coalesced.get(make()), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            futures::future::join_all((0..50).map(|_| coalesced.get(make()))).await
        });
        assert_eq!(*first, 1);
        assert!(others.iter().all(|other| **other == 2), "the first one had begun before they came");
    }
}
