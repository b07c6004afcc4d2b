//! A client's files: task logs, plain or in the frames the official command line reads.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::access::Call;
use super::reply;
use crate::client::AllocRunner;
use crate::state::Phase;

pub(crate) async fn route(call: Call, action: &str, id: &str) -> Result<Response, Response> {
    let need: &[&str] = if action == "logs" { &["read-fs", "read-logs"] } else { &["read-fs"] };
    let runner = super::allocs::runner(&call, id, need)?;
    let root = call.core.config.data_dir.join("alloc").join(id);
    Ok(match action {
        "logs" => logs(&call, &runner, root),
        "ls" => list(&root, call.query.get("path")),
        "stat" => stat(&root, call.query.get("path")),
        "cat" | "readat" | "stream" => cat(&root, call.query.get("path")),
        _ => reply::not_found(),
    })
}

fn logs(call: &Call, runner: &std::sync::Arc<AllocRunner>, root: PathBuf) -> Response {
    let q = &call.query;
    let task = q.get("task").to_owned();
    if task.is_empty() {
        return reply::text(400, "must provide task name");
    }
    let Some(t) = runner.tasks.iter().find(|t| t.name() == task) else {
        return reply::text(404, &format!("unknown task name {task:?}"));
    };
    let kind = match q.get("type") {
        "" | "stdout" => "stdout",
        "stderr" => "stderr",
        _ => return reply::text(400, "logs type must be stdout or stderr"),
    };
    if t.state().started_at == 0 {
        return reply::text(404, &format!("task {task:?} not started yet. No logs available"));
    }
    let (plain, follow) = (q.flag("plain", false), q.flag("follow", false));
    let offset = q.get("offset").parse::<u64>().unwrap_or(0);
    let from_end = q.get("origin") == "end";
    let name = format!("{task}.{kind}.0");
    let path = root.join("alloc").join("logs").join(&name);
    let (tx, rx) = mpsc::channel::<Result<Bytes, std::io::Error>>(16);
    let (runner, core) = (runner.clone(), call.core.clone());
    call.core.tracker.spawn(async move {
        let size = std::fs::metadata(&path).map_or(0, |m| m.len());
        let mut at = if from_end { size.saturating_sub(offset) } else { offset.min(size) };
        loop {
            let chunk = read(&path, at);
            if !chunk.is_empty() {
                at += chunk.len() as u64;
                let out = if plain { chunk } else { frame(&name, at, &chunk) };
                if tx.send(Ok(Bytes::from(out))).await.is_err() {
                    return;
                }
                continue;
            }
            let over = runner.tasks.iter().find(|t| t.name() == task).is_none_or(|t| t.phase() == Phase::Dead);
            if !follow || over {
                return;
            }
            tokio::select! {
                biased;
                () = core.cancel.cancelled() => return,
                () = tx.closed() => return,
                () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {}
            }
        }
    });
    let body = Body::from_stream(futures::stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|item| (item, rx)) }));
    reply::stream(body, if plain { "text/plain" } else { "application/json" })
}

fn frame(file: &str, offset: u64, data: &[u8]) -> Vec<u8> {
    serde_json::to_vec(&json!({"Data": crate::base64::encode(data), "File": file, "Offset": offset})).unwrap_or_default()
}

fn read(path: &std::path::Path, at: u64) -> Vec<u8> {
    let mut out = Vec::new();
    if let Ok(mut f) = std::fs::File::open(path)
        && f.seek(SeekFrom::Start(at)).is_ok()
    {
        // A chunk at a time: a log may be long.
        let _ = f.take(64 * 1024).read_to_end(&mut out);
    }
    out
}

fn inside(root: &std::path::Path, path: &str) -> Result<PathBuf, Response> {
    crate::client::inside(root, path).ok_or_else(|| reply::text(500, "Path escapes the alloc directory"))
}

fn info(path: &std::path::Path) -> Option<Value> {
    let m = std::fs::metadata(path).ok()?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Some(
        json!({"FileMode": if m.is_dir() { "drwxr-xr-x" } else { "-rw-r--r--" }, "IsDir": m.is_dir(), "ModTime": "1970-01-01T00:00:00Z", "Name": name, "Size": m.len()}),
    )
}

fn list(root: &std::path::Path, path: &str) -> Response {
    match inside(root, path) {
        Ok(p) => {
            let mut rows: Vec<Value> =
                std::fs::read_dir(&p).into_iter().flatten().flatten().filter_map(|e| info(&e.path())).collect();
            rows.sort_by_key(|r| r["Name"].as_str().map(str::to_owned));
            reply::plain_json(&rows)
        }
        Err(r) => r,
    }
}

fn stat(root: &std::path::Path, path: &str) -> Response {
    match inside(root, path) {
        Ok(p) => info(&p)
            .map_or_else(|| reply::text(404, &format!("stat {path}: no such file or directory")), |i| reply::plain_json(&i)),
        Err(r) => r,
    }
}

fn cat(root: &std::path::Path, path: &str) -> Response {
    match inside(root, path).map(std::fs::read) {
        Ok(Ok(bytes)) => reply::stream(Body::from(bytes), "text/plain"),
        Ok(Err(_)) => reply::text(404, &format!("stat {path}: no such file or directory")),
        Err(r) => r,
    }
}
