//! Servers that are not what they are taken for.

use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Answers everything the same way, until dropped.
pub struct Fake {
    pub addr: String,
    asked: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Fake {
    async fn serving(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { addr, asked: watch::Sender::new(false), task }
    }

    /// Returns when a hanging one was asked something.
    pub async fn asked(&self) {
        let mut asked = self.asked.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(30), asked.wait_for(|asked| *asked)).await;
        assert!(waited.is_ok(), "nothing was asked of {}", self.addr);
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
        let asked = watch::Sender::new(false);
        let told = asked.clone();
        let hang = move || async move {
            told.send_replace(true);
            std::future::pending::<StatusCode>().await
        };
        let mut fake = Self::serving(Router::new().fallback(hang)).await;
        fake.asked = asked;
        fake
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}
