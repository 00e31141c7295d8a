//! Checks before a request is handled: API key, and origin of requests by web pages.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::app::App;
use super::error::{ApiError, ApiResult};

/// Paths that need no API key: the page, which asks for it, and the health check.
const OPEN_PATHS: [&str; 2] = ["/", "/health"];

/// Checks a request, and counts its response.
pub(super) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let checked = check_origin(&app, request.headers()).and_then(|()| {
        let is_open = OPEN_PATHS.contains(&request.uri().path());
        if is_open {
            Ok(())
        } else {
            check_key(&app, request.headers())
        }
    });
    let response = match checked {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    app.metrics.count_response(response.status());
    response
}

/// Rejects requests that a web page of another origin makes, and on the loopback address those with the name of another
/// host: a page could give its own name this address.
fn check_origin(app: &App, headers: &HeaderMap) -> ApiResult<()> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let origin = headers
        .get(header::ORIGIN)
        .map(|_| text(header::ORIGIN).unwrap_or_default());
    let is_other_origin = origin.is_some_and(|origin| {
        let of_origin = origin.split_once("://").map_or(origin, |(_, host)| host);
        of_origin != host
    });
    let is_other_host =
        app.options.host.is_loopback() && !host.is_empty() && !is_loopback_name(host);
    match is_other_origin || is_other_host {
        true => {
            let message =
                "requests of other web pages, or under another host name, are not accepted";
            Err(ApiError::new(StatusCode::FORBIDDEN, message))
        }
        false => Ok(()),
    }
}

/// True if a `Host` names the loopback interface.
fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_address = name
        .parse::<std::net::IpAddr>()
        .is_ok_and(|address| address.is_loopback());
    is_address || name.eq_ignore_ascii_case("localhost")
}

fn check_key(app: &App, headers: &HeaderMap) -> ApiResult<()> {
    let Some(key) = &app.options.api_key else {
        return Ok(());
    };
    let given = headers
        .get(header::AUTHORIZATION)
        .map(|value| value.as_bytes());
    let given = given
        .and_then(|value| value.strip_prefix(b"Bearer "))
        .unwrap_or_default();
    match equal_in_constant_time(given, key.as_bytes()) {
        true => Ok(()),
        false => {
            let message = "the API key is missing or wrong (header `Authorization: Bearer KEY`)";
            Err(ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"))
        }
    }
}

/// Compares in a time that does not depend on the position of a difference.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names_are_recognized() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1",
            "127.1.2.3:99",
            "[::1]",
            "[::1]:80",
        ] {
            assert!(is_loopback_name(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:80",
            "10.0.0.1:80",
            "[::2]:80",
            "[",
        ] {
            assert!(!is_loopback_name(host), "{host}");
        }
    }

    #[test]
    fn keys_are_compared_completely() {
        assert!(equal_in_constant_time(b"secret", b"secret"));
        for other in [&b""[..], b"secre", b"secret2", b"Secret"] {
            assert!(!equal_in_constant_time(other, b"secret"));
        }
    }
}
