//! Query strings, and waiting for news.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use percent_encoding::percent_decode_str;

use super::access::Call;
use super::reply;
use crate::core::Core;
use crate::duration;
use crate::filter::Filter;
use crate::state::{State, Table};

const DEFAULT_WAIT: Duration = Duration::from_secs(300);
const MAX_WAIT: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let decode = |s: &str| percent_decode_str(&s.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = text.split('&').filter(|p| !p.is_empty());
        Self(
            pairs
                .map(|p| p.split_once('=').map_or_else(|| (decode(p), String::new()), |(k, v)| (decode(k), decode(v))))
                .collect(),
        )
    }

    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }

    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Nomad reads booleans as Go does.
    pub(crate) fn flag(&self, key: &str, default: bool) -> bool {
        match self.get(key) {
            "" => default,
            v => matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        }
    }

    pub(crate) fn namespace(&self) -> &str {
        match self.get("namespace") {
            "" => "default",
            n => n,
        }
    }

    /// Whether something in `namespace` is asked for.
    pub(crate) fn in_namespace(&self, namespace: &str) -> bool {
        matches!(self.namespace(), "*") || self.namespace() == namespace
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.get(key).parse().ok()
    }

    pub(crate) fn filter(&self) -> Result<Option<Filter>, Response> {
        match self.get("filter") {
            "" => Ok(None),
            text => Filter::parse(text).map(Some).map_err(|e| {
                reply::text(400, &format!("failed to create result paginator: failed to read filter expression: {e}"))
            }),
        }
    }

    /// Waits until the index of what is asked for has passed the caller's, or the wait is over.
    pub(crate) async fn wait(&self, core: &Arc<Core>, index_of: impl Fn(&State) -> u64) -> Result<(), Response> {
        let wanted = match self.get("index") {
            "" => return Ok(()),
            text => match text.parse::<u64>() {
                Ok(n) => n,
                Err(_) => return Err(reply::text(400, "Invalid index")),
            },
        };
        let wait = match self.get("wait") {
            "" => DEFAULT_WAIT,
            text => match duration::parse(text).or_else(|| text.parse::<i64>().ok().map(|s| s * 1_000_000_000)) {
                Some(ns) => crate::job::spec::nanos(ns).min(MAX_WAIT),
                None => return Err(reply::text(400, "Invalid wait time")),
            },
        };
        if wanted == 0 {
            return Ok(());
        }
        let mut changed = core.changed.subscribe();
        let news = async {
            loop {
                changed.borrow_and_update();
                if core.read(&index_of) > wanted || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = core.cancel.cancelled() => {}
            _ = tokio::time::timeout(wait, news) => {}
        }
        Ok(())
    }
}

/// What every list begins with: the wait for news, the filter.
pub(crate) async fn opened(call: &Call, table: Table) -> Result<Option<Filter>, Response> {
    call.query.wait(&call.core, |s| s.table(table)).await?;
    call.query.filter()
}

/// One page of a list, and the token of the next.
pub(crate) struct Page<T> {
    pub items: Vec<T>,
    pub next: String,
}

/// Walks an ordered list: `token_of` an item, whether it is before the wanted token, whether it is wanted at all.
pub(crate) fn page<T>(
    query: &Query,
    items: impl Iterator<Item = T>,
    token_of: impl Fn(&T) -> String,
    before: impl Fn(&T, &str) -> bool,
    mut wanted: impl FnMut(&T) -> Result<bool, String>,
) -> Result<Page<T>, Response> {
    let per_page = match query.get("per_page") {
        "" => 0,
        // A negative number is no limit either.
        text => match text.parse::<i32>() {
            Ok(n) => usize::try_from(n).unwrap_or(0),
            Err(_) => return Err(reply::text(400, "Expect a number for `per_page` query string parameter")),
        },
    };
    let token = query.get("next_token");
    let mut out = Vec::new();
    let mut next = String::new();
    // Only the first item of the page is sought; what a filter leaves out is not it.
    let mut found = token.is_empty();
    for item in items {
        if !found && before(&item, token) {
            continue;
        }
        let keep = wanted(&item).map_err(|e| reply::text(400, &format!("failed to read result page: {e}")))?;
        if !keep {
            continue;
        }
        found = true;
        if per_page > 0 && out.len() >= per_page {
            next = token_of(&item);
            break;
        }
        out.push(item);
    }
    Ok(Page { items: out, next })
}

/// `12.abc` tokens sort by number, then text.
pub(crate) fn numbered_before(index: u64, id: &str, token: &str) -> bool {
    let (number, rest) = token.split_once('.').unwrap_or((token, ""));
    let number = number.parse::<u64>().unwrap_or(0);
    (index, id) < (number, rest)
}
