//! Servers that are not what they are taken for.

use axum::Router;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse};
use tokio::net::TcpListener;

/// Answers everything the same way, until dropped.
pub struct Fake {
    pub addr: String,
    task: tokio::task::JoinHandle<()>,
}

impl Fake {
    async fn serving(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { addr, task }
    }

    /// A web site.
    pub async fn web_site() -> Self {
        Self::serving(Router::new().fallback(|| async { Html("<html><body>Welcome!</body></html>") })).await
    }

    /// JSON, but nobody's here.
    pub async fn other_api() -> Self {
        Self::serving(Router::new().fallback(|| async { axum::Json(serde_json::json!({ "hello": "world" })) })).await
    }

    /// Nomad with a token that it does not take.
    pub async fn forbidding() -> Self {
        Self::serving(Router::new().fallback(|| async { (StatusCode::FORBIDDEN, "Permission denied").into_response() })).await
    }

    /// Takes the request and never answers.
    pub async fn hanging() -> Self {
        Self::serving(Router::new().fallback(|| async { std::future::pending::<StatusCode>().await })).await
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}
