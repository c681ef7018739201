//! Compression of bodies: `Content-Encoding: gzip` of requests, and of responses to clients that accept it.
//!
//! Input: a body. Output: a stream of its bytes, decompressed or compressed as they come. Limits of bodies apply to decompressed bytes:
//! one read of compressed bytes yields a bounded number of them.

use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, MultiGzDecoder};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use poem::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, VARY};
use poem::http::{Method, StatusCode, Version};
use poem::{Body, Request, Response};

/// Compressed bytes that are decompressed at once. Deflate expands a byte to 1,032 at most.
const SLICE: usize = 1024;
/// Responses of a shorter known length are not compressed.
const SHORT: u64 = 1024;

/// Encodings of a request body that are accepted.
pub fn is_accepted(encoding: &[u8]) -> bool {
    is_gzip(encoding) || encoding.eq_ignore_ascii_case(b"identity")
}

fn is_gzip(encoding: &[u8]) -> bool {
    encoding.eq_ignore_ascii_case(b"gzip") || encoding.eq_ignore_ascii_case(b"x-gzip")
}

/// Replaces the body of a request by its decompressed bytes.
pub fn decompress(request: &mut Request) {
    let Some(encoding) = request.headers_mut().remove(CONTENT_ENCODING) else { return };
    if is_gzip(encoding.as_bytes()) {
        // It says how long the compressed body is.
        request.headers_mut().remove(CONTENT_LENGTH);
        let body = request.take_body();
        request.set_body(Body::from_bytes_stream(decompressed(body.into_bytes_stream())));
    }
}

/// A stream that is being decompressed.
struct Decompressing<S> {
    body: S,
    /// Bytes that have arrived and are not decompressed yet.
    chunk: Bytes,
    /// `None` after the end or an error.
    decoder: Option<MultiGzDecoder<Vec<u8>>>,
}

fn decompressed(body: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> BoxStream<'static, io::Result<Bytes>> {
    let state =
        Decompressing { body: Box::pin(body), chunk: Bytes::new(), decoder: Some(MultiGzDecoder::new(Vec::new())) };
    futures::stream::unfold(state, |mut state| async move {
        let piece = state.next().await;
        if matches!(piece, None | Some(Err(_))) {
            state.decoder = None;
        }
        piece.map(|piece| (piece, state))
    })
    .boxed()
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Decompressing<S> {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let damaged =
            |error: io::Error| io::Error::new(io::ErrorKind::InvalidData, format!("the body is no gzip: {error}"));
        loop {
            let decoder = self.decoder.as_mut()?;
            if self.chunk.is_empty() {
                match self.body.next().await {
                    Some(Ok(chunk)) => self.chunk = chunk,
                    Some(Err(error)) => return Some(Err(error)),
                    None => {
                        let rest = self.decoder.take()?.finish();
                        return match rest {
                            Ok(rest) if rest.is_empty() => None,
                            rest => Some(rest.map(Bytes::from).map_err(damaged)),
                        };
                    }
                }
                continue;
            }
            let slice = self.chunk.split_to(self.chunk.len().min(SLICE));
            if let Err(error) = decoder.write_all(&slice) {
                return Some(Err(damaged(error)));
            }
            let piece = std::mem::take(decoder.get_mut());
            if !piece.is_empty() {
                return Some(Ok(Bytes::from(piece)));
            }
        }
    }
}

/// Whether a response to this request may be compressed.
pub fn accepts_gzip(request: &Request) -> bool {
    // HTTP/1.0 has no chunked encoding, which a body of unknown length needs.
    request.version() > Version::HTTP_10 && request.method() != Method::HEAD && accepted(request.headers())
}

fn accepted(headers: &HeaderMap) -> bool {
    let mut accepted = None;
    for value in headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()) {
        for coding in value.split(',') {
            let mut parts = coding.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok());
            let wanted = weight.is_some_and(|weight| weight > 0.0);
            if is_gzip(name.as_bytes()) {
                return wanted;
            }
            if name == "*" {
                accepted = Some(wanted);
            }
        }
    }
    accepted.unwrap_or(false)
}

/// Compresses a response if its client accepts that (`asked`) and if it is text. `length` is the length of its body, if known.
pub fn compress(asked: bool, length: Option<u64>, response: &mut Response) {
    let text = response.content_type().is_some_and(is_text);
    let done = response.headers().contains_key(CONTENT_ENCODING);
    let has_body = !matches!(response.status(), StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT);
    if !text || done || !has_body || length.is_some_and(|length| length < SHORT) {
        return;
    }
    response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
    if !asked {
        return;
    }
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    // Another representation of the same content: the tag identifies the content only.
    if let Some(weak) = headers.get(ETAG).and_then(weak) {
        headers.insert(ETAG, weak);
    }
    let body = response.take_body();
    response.set_body(Body::from_bytes_stream(compressed(body.into_bytes_stream())));
}

fn weak(tag: &HeaderValue) -> Option<HeaderValue> {
    let tag = tag.to_str().ok().filter(|tag| !tag.starts_with("W/"))?;
    HeaderValue::from_str(&format!("W/{tag}")).ok()
}

/// Whether bodies of a media type are worth compressing. Event streams are not: their events must not wait for more.
fn is_text(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    let named = ["application/json", "application/x-ndjson", "application/jsonl", "image/svg+xml"];
    (kind.starts_with("text/") && kind != "text/event-stream") || kind.ends_with("+json") || named.contains(&kind)
}

fn compressed(body: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> BoxStream<'static, io::Result<Bytes>> {
    let encoder = Some(GzEncoder::new(Vec::new(), Compression::fast()));
    futures::stream::unfold((Box::pin(body), encoder), |(mut body, mut encoder)| async move {
        loop {
            let open = encoder.as_mut()?;
            let piece = match body.next().await {
                Some(Ok(chunk)) => open.write_all(&chunk).map(|()| std::mem::take(open.get_mut())),
                Some(Err(error)) => Err(error),
                None => encoder.take()?.finish(),
            };
            match piece {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => return Some((Ok(Bytes::from(piece)), (body, encoder))),
                Err(error) => return Some((Err(error), (body, None))),
            }
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    async fn all(chunks: Vec<Vec<u8>>) -> io::Result<Vec<u8>> {
        let body = futures::stream::iter(chunks.into_iter().map(|chunk| Ok(Bytes::from(chunk))));
        let mut pieces = decompressed(body);
        let mut whole = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            assert!(piece.len() <= 2 * SLICE * 1032, "{}", piece.len());
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    #[tokio::test]
    async fn bodies_are_decompressed_in_bounded_pieces() {
        let text = b"discounted_price,rating\n".repeat(200_000);
        let zipped = gzip(&text);
        assert_eq!(all(vec![zipped.clone()]).await.unwrap(), text);
        assert_eq!(all(zipped.chunks(7).map(<[u8]>::to_vec).collect()).await.unwrap(), text);
        let two = [gzip(b"a,b\n"), gzip(b"1,2\n")].concat();
        assert_eq!(all(vec![two]).await.unwrap(), b"a,b\n1,2\n", "two members");
        for wrong in [b"a,b\n1,2\n".to_vec(), Vec::new(), zipped[..zipped.len() - 3].to_vec(), zipped[..30].to_vec()] {
            let error = all(vec![wrong]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }

    #[tokio::test]
    async fn responses_are_compressed_as_they_come() {
        let text = b"{\"cluster\":1}\n".repeat(100_000);
        let chunks: Vec<io::Result<Bytes>> = text.chunks(5000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let zipped: Vec<Bytes> = compressed(futures::stream::iter(chunks)).map(Result::unwrap).collect().await;
        assert!(zipped.len() > 1);
        let mut back = Vec::new();
        flate2::read::GzDecoder::new(zipped.concat().as_slice()).read_to_end(&mut back).unwrap();
        assert_eq!(back, text);
        // An error ends the stream: it cannot be taken for a complete one.
        let broken = vec![Ok(Bytes::from_static(b"a")), Err(io::Error::other("cut"))];
        let pieces: Vec<io::Result<Bytes>> = compressed(futures::stream::iter(broken)).collect().await;
        assert!(pieces.last().unwrap().is_err());
    }

    #[test]
    fn clients_say_what_they_accept() {
        for (value, expected) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5, br", true),
            ("gzip;q=0", false),
            ("gzip;q=0, *", false),
            ("*", true),
            ("br, zstd", false),
            ("identity", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(accepted(&headers), expected, "{value}");
        }
        assert!(!accepted(&HeaderMap::new()));
    }
}
