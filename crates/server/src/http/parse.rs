//! JSON bodies, and errors that name a field.

use axum::http::StatusCode;
use hybridnorm::parse_errors::plain_message;
use serde::de::DeserializeOwned;

use super::error::{ApiError, ApiResult};

/// Reads a JSON body.
///
/// # Errors
/// Naming the field that is unknown, missing or has another type.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        // In JSON's terms.
        let message = plain_message(&message).replace("a table", "an object");
        parse_error(&path, &message)
    })?;
    deserializer
        .end()
        .map_err(|error| parse_error(".", &error.to_string()))?;
    Ok(value)
}

fn parse_error(path: &str, message: &str) -> ApiError {
    let quoted = |prefix: &str| {
        let rest = message.strip_prefix(prefix)?;
        rest.split('`').next().map(str::to_owned)
    };
    if let Some(field) = quoted("unknown field `") {
        let message = format!("unrecognized request argument: `{field}`");
        return ApiError::field(field, message).with_code("unknown_parameter");
    }
    if let Some(field) = quoted("missing field `") {
        return ApiError::field(
            field.clone(),
            format!("missing required parameter: `{field}`"),
        );
    }
    match path {
        // The body as a whole, or a field whose name was not read.
        "." | "?" => ApiError::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not a valid JSON request: {message}"),
        ),
        path => ApiError::field(path, format!("`{path}`: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::{ChatRequest, CompletionRequest};
    use super::*;

    #[test]
    fn errors_of_a_body_name_the_field() {
        let error = |json: &str| {
            let error = parse::<CompletionRequest>(json.as_bytes())
                .unwrap_err()
                .to_json();
            let error = &error["error"];
            (
                error["param"].as_str().unwrap_or("-").to_owned(),
                error["message"].as_str().unwrap().to_owned(),
            )
        };
        for (json, param) in [
            (r#"{"prompt": 3}"#, "prompt"),
            (r#"{"max_tokens": -1}"#, "max_tokens"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"min_p": 0.1}"#, "min_p"),
            (r#"{"stream_options": {"a": 1}}"#, "a"),
            (r#"{"stop": ["a", 3]}"#, "stop[1]"),
            ("[]", "-"),
            ("", "-"),
            ("{} x", "-"),
            ("{", "-"),
        ] {
            let (found, message) = error(json);
            assert_eq!(found, param, "{json}: {message}");
        }
        let (_, message) = error(r#"{"max_tokens": "2"}"#);
        assert!(
            message.starts_with(
                "`max_tokens`: expected a non-negative integer, found the string \"2\""
            ),
            "{message}"
        );
        let (_, message) = error(r#"{"temperature": "hot"}"#);
        assert!(message.contains("expected a number"), "{message}");
        let error = parse::<ChatRequest>(b"{}").unwrap_err().to_json();
        assert_eq!(error["error"]["param"], "messages");
    }
}
