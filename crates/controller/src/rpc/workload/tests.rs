use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use curfew_nomad::{Body, NomadConfig, TransportError};
use futures::StreamExt;
use http::{Request, Response};

use super::*;

/// The keys of a Nomad that is away, here by not answering at all, are waited for once in a while and not by each caller.
#[tokio::test(start_paused = true)]
async fn a_nomad_that_is_away_is_not_waited_for_by_each_caller() {
    let (away, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (gone, count) = (away.clone(), asked.clone());
    let transport = move |_: Request<Bytes>| {
        count.fetch_add(1, Ordering::Relaxed);
        let away = gone.load(Ordering::Relaxed);
        async move {
            if away {
                std::future::pending::<()>().await;
            }
            let keys = r#"{"keys":[{"kid":"k1","kty":"RSA","alg":"RS256","use":"sig","n":"sXch","e":"AQAB"}]}"#;
            let body: Body = futures::stream::iter([Ok(Bytes::from(keys))]).boxed();
            Ok::<_, TransportError>(Response::new(body))
        }
    };
    let config = NomadConfig { addr: "http://nomad.example:4646".into(), ..NomadConfig::default() };
    let nomad = Nomad::with_transport(config, transport).unwrap();
    let keys = Workloads::default();
    let took = async |kid: &str| {
        let (began, before) = (Instant::now(), asked.load(Ordering::Relaxed));
        let key = keys.key(kid, &nomad).await.map(|k| k.is_some()).map_err(|why| why.detail().to_owned());
        (key, began.elapsed(), asked.load(Ordering::Relaxed) - before)
    };
    assert_eq!(took("k1").await, (Ok(true), Duration::ZERO, 1));
    assert_eq!(took("k1").await, (Ok(true), Duration::ZERO, 0));
    away.store(true, Ordering::Relaxed);
    tokio::time::advance(FRESH).await;
    let (key, waited, calls) = took("k1").await;
    assert!(key == Ok(true) && waited > Duration::ZERO && calls > 0, "the first one asks: {key:?} {waited:?} {calls}");
    assert_eq!(took("k1").await, (Ok(true), Duration::ZERO, 0), "what was said before holds");
    let (key, waited, calls) = took("k2").await;
    assert!(key.is_err() && waited == Duration::ZERO && calls == 0, "{key:?} {waited:?} {calls}");
    away.store(false, Ordering::Relaxed);
    tokio::time::advance(AGAIN).await;
    assert_eq!(took("k2").await, (Ok(false), Duration::ZERO, 1), "it is back, and has no such key");
}
