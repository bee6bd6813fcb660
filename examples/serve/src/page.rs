//! `GET /`: a page to chat on.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{Html, IntoResponse};

/// One file, that needs nothing from elsewhere.
pub async fn page() -> impl IntoResponse {
    let headers = [
        // No other site may put it into a frame, where clicks could be led astray.
        (HeaderName::from_static("x-frame-options"), HeaderValue::from_static("DENY")),
        // After an update of the server the old page is not shown again.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Html(include_str!("../page.html")))
}
