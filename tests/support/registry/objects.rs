//! Objects of S3 buckets, as far as a cache needs them: whole objects put, read and asked for their length.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::Digest as _;

use super::State;
use super::http::{Request, Response};

/// An error of the S3 API.
pub fn error(status: u16, code: &str) -> Response {
    let body =
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>-</Message></Error>");
    Response::new(status).with("Content-Type", "application/xml").body(body)
}

pub fn answer(state: &mut State, request: &Request, body: Vec<u8>) -> Response {
    // Whoever has a key has signed, in the query; others look for something else.
    if request.parameter("X-Amz-Signature").is_none() {
        return Response::new(404);
    }
    match request.method.as_str() {
        "PUT" => {
            let said = request.header("x-amz-checksum-sha256");
            if said != Some(STANDARD.encode(sha2::Sha256::digest(&body)).as_str()) {
                return error(400, "BadDigest");
            }
            state.objects.insert(request.path.clone(), body);
            Response::new(200)
        }
        "GET" | "HEAD" => match state.objects.get(&request.path) {
            Some(bytes) => Response::new(200).body(bytes.as_slice()),
            None => error(404, "NoSuchKey"),
        },
        _ => error(405, "MethodNotAllowed"),
    }
}
