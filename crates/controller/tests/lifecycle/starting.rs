//! While it is still starting: it says so, and it can be stopped.

use std::time::Duration;

use curfew_controller::{Ending, Phase};
use curfew_store::Store;
use futures::FutureExt;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::kit::{Lab, until};

async fn get(addr: std::net::SocketAddr, path: &str) -> (u16, String) {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
    let answer = http.get(format!("http://{addr}{path}")).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn the_rpc_says_starting_until_the_clocks_are_taken_up() {
    let lab = Lab::new(Box::new(|_| None));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (open, opening) = oneshot::channel::<Arc<dyn Store>>();
    let opening = async move { Ok(opening.await?) }.boxed();
    let controller = curfew_controller::start(lab.parts(opening, Some(listener))).unwrap();
    let addr = controller.addr().unwrap();
    assert_eq!(get(addr, "/healthz").await, (200, "starting\n".into()));
    assert_eq!(get(addr, "/readyz").await, (503, "starting\n".into()));
    let (code, status) = get(addr, "/v1/status").await;
    assert!(code == 200 && status.contains(r#""phase":"starting""#), "{code} {status}");
    let (code, problem) = get(addr, "/v1/operations").await;
    assert!(code == 503 && problem.contains("urn:curfew:problem:starting"), "{code} {problem}");

    assert!(open.send(lab.store()).is_ok());
    controller.started().await.unwrap();
    assert_eq!(get(addr, "/healthz").await, (200, "running\n".into()));
    until("readiness", async || get(addr, "/readyz").await == (200, "ready\n".into())).await;
    assert_eq!(get(addr, "/v1/operations").await, (200, "[]".into()));

    controller.stop(true).await;
    assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "the address is free again");
    assert!(TcpListener::bind(addr).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_it_starts_ends_it_cleanly_and_at_once() {
    let lab = Lab::new(Box::new(|_| None));
    let controller = curfew_controller::start(lab.parts(std::future::pending().boxed(), None)).unwrap();
    let mut phases = controller.phase();
    assert_eq!(*phases.borrow_and_update(), Phase::Starting);
    let asked = tokio::time::Instant::now();
    controller.stop(true).await;
    assert!(asked.elapsed() < Duration::from_millis(100));
    assert_eq!(controller.stopped().await, Ending::Clean);
    assert!(controller.started().await.is_ok(), "nothing failed");
}

#[tokio::test]
async fn what_keeps_it_from_starting_is_told() {
    let lab = Lab::new(Box::new(|_| None));
    let opening = std::future::ready(Err("the disk is on fire".into())).boxed();
    let controller = curfew_controller::start(lab.parts(opening, None)).unwrap();
    assert_eq!(controller.started().await.unwrap_err().to_string(), "the disk is on fire");
    assert_eq!(controller.stopped().await, Ending::Failed);
    controller.stop(true).await;
}

/// A client that has sent half a request, one that reads nothing, one that waits for an operation.
#[tokio::test]
async fn connections_of_all_sorts_are_closed_at_the_end() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let lab = Lab::new(Box::new(|line| line.starts_with("DELETE").then(|| async { crate::kit::DELETED.to_owned() }.boxed())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = lab.store();
    let op = lab.ask(&*store, "j").await;
    let opening = std::future::ready(Ok(store as Arc<dyn Store>)).boxed();
    let controller = curfew_controller::start(lab.parts(opening, Some(listener))).unwrap();
    controller.started().await.unwrap();
    let addr = controller.addr().unwrap();
    let mut ends = vec![];
    for sent in ["", "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", "GET /v1/st"] {
        let mut c = tokio::net::TcpStream::connect(addr).await.unwrap();
        c.write_all(sent.as_bytes()).await.unwrap();
        ends.push(c);
    }
    let waiting = tokio::spawn(async move { get(addr, &format!("/v1/operations/{op}?wait=60s")).await });
    until("the long poll", async || lab.asked("DELETE") == 1).await;
    let asked = tokio::time::Instant::now();
    controller.stop(true).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert_eq!(controller.stopped().await, Ending::Clean);
    for mut c in ends {
        let mut rest = vec![];
        // A reset is an end too.
        let _ = tokio::time::timeout(Duration::from_secs(5), c.read_to_end(&mut rest)).await.unwrap();
    }
    assert_eq!(waiting.await.unwrap().0, 200);
}
