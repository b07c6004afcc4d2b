use std::time::Duration;

use curfew_core::{Desired, JobKey};
use curfew_nomad::{Body, Error, Event, NodeStatus, Nomad, NomadConfig, StreamEnd};
use futures::{FutureExt, StreamExt};
use http::Response;
use tokio::time::Instant;

use crate::fake::{body, config, nomad, nomad_with, open_body, respond};

const EVENTS: &[u8] = include_bytes!("../fixtures/events.ndjson");

fn streaming(body: impl Fn() -> Body + Send + Sync + 'static) -> Nomad {
    nomad(move |_| Response::new(body())).0
}

#[tokio::test(start_paused = true)]
async fn a_recording_is_read_with_an_index_for_each_frame_and_then_it_closes() {
    let (nomad, log) = nomad(|_| Response::new(body(EVENTS.chunks(7).collect())));
    let mut stream = nomad.events(Some(155)).await.unwrap();
    assert_eq!(
        log.lines(),
        ["GET /v1/event/stream?topic=Allocation&topic=Job&topic=Node&topic=Evaluation&namespace=%2A&index=155"]
    );
    let mut seen = Vec::new();
    let end = loop {
        match stream.next().await {
            Ok(frame) => seen.push(frame),
            Err(end) => break end,
        }
    };
    assert!(matches!(end, StreamEnd::Closed), "{end:?}");
    let indices: Vec<_> = seen.iter().map(|f| f.index).collect();
    assert_eq!(indices, [None, Some(156), Some(159), Some(160), Some(246), Some(247), Some(250), Some(254)]);
    assert_eq!(seen[0].events, [Event::Heartbeat]);
    assert!(matches!(&seen[1].events[..], [Event::Evaluation(e)] if e.key == JobKey::new("default", "drain-batch")));
    let [Event::Node(n)] = &seen[2].events[..] else { panic!("{seen:?}") };
    assert_eq!(
        (n.stub.status.clone(), n.stub.draining, n.http_addr.as_str(), n.meta["zone"].as_str()),
        (NodeStatus::Ready, true, "127.0.0.1:4646", "a")
    );
    assert!(
        matches!(&seen[3].events[..], [Event::Allocation(a)] if a.migrate && a.desired == Desired::Run && a.job_version.is_none()),
        "{:?}",
        seen[3]
    );
    let job = |i: usize| match &seen[i].events[..] {
        [Event::Job { key, spec, deregistered, purged }] => (key.clone(), spec.stopped, *deregistered, *purged),
        other => panic!("{other:?}"),
    };
    assert_eq!(job(4), (JobKey::new("default", "ev"), false, false, false));
    assert!(seen[5].events.is_empty(), "a topic that was not asked for: {:?}", seen[5]);
    assert_eq!(job(6), (JobKey::new("default", "ev"), true, true, false));
    assert_eq!(job(7), (JobKey::new("default", "ev"), true, true, true));
}

#[tokio::test(start_paused = true)]
async fn one_bad_event_is_one_bad_event() {
    let line = br#"{"Index":9,"Events":[
        {"Topic":"Job","Type":"JobRegistered","Key":"a","Payload":{"Job":{"ID":"a","Namespace":"default"}}},
        {"Topic":"Allocation","Type":"AllocationUpdated","Key":"x","Payload":{"Allocation":{"ID":5}}},
        {"Topic":"Evaluation","Key":"y","Payload":null},
        {"Topic":7},
        {"Topic":"Node","Type":"NodeDeregistration","Key":"n","Payload":{"Node":{"ID":"n","Status":"gone fishing"}}}]}"#;
    // On one line, as Nomad sends it.
    let line: &'static [u8] = Vec::leak(line.iter().copied().filter(|b| *b != b'\n').chain(*b"\n").collect());
    let mut stream = streaming(move || open_body(vec![line])).events(None).await.unwrap();
    let frame = stream.next().await.unwrap();
    assert_eq!(frame.index, Some(9));
    assert!(matches!(&frame.events[0], Event::Job { .. }));
    assert!(
        matches!(&frame.events[1], Event::Bad { topic, key, .. } if topic == "Allocation" && key == "x"),
        "{:?}",
        frame.events[1]
    );
    assert!(matches!(&frame.events[2], Event::Bad { topic, .. } if topic == "Evaluation"));
    assert!(matches!(&frame.events[3], Event::Bad { topic, .. } if topic.is_empty()));
    assert!(matches!(&frame.events[4], Event::Node(n) if n.stub.status == NodeStatus::Other("gone fishing".into())));
}

#[tokio::test(start_paused = true)]
async fn a_bad_token_answers_200_and_no_byte() {
    let mut stream = streaming(|| open_body(vec![])).events(None).await.unwrap();
    let start = Instant::now();
    let end = stream.next().await.unwrap_err();
    assert!(matches!(end, StreamEnd::Silent) && end.to_string().contains("check the token"), "{end}");
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn silence_beyond_the_idle_limit_ends_it_and_a_heartbeat_does_not() {
    let beats = || {
        let beats = futures::stream::iter(0..3).then(|_| async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            Ok("{}\n".into())
        });
        beats.chain(futures::stream::pending()).boxed()
    };
    let mut stream = streaming(beats).events(None).await.unwrap();
    for _ in 0..3 {
        assert_eq!(stream.next().await.unwrap().events, [Event::Heartbeat]);
    }
    let start = Instant::now();
    assert!(matches!(stream.next().await.unwrap_err(), StreamEnd::Idle));
    assert_eq!(start.elapsed().as_secs(), 45);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_wait_loses_nothing() {
    let mut stream = streaming(|| open_body(vec![b"{\"Index\":3,", b"\"Events\":[]}\n"])).events(None).await.unwrap();
    let frame = loop {
        // Polled once and dropped, again and again.
        if let Some(frame) = stream.next().now_or_never() {
            break frame.unwrap();
        }
    };
    assert_eq!((frame.index, frame.events.len()), (Some(3), 0));
}

#[tokio::test(start_paused = true)]
async fn a_line_is_bounded_and_must_be_nomads() {
    let config = NomadConfig { stream_max_line: 8, ..config() };
    let (nomad, _) = nomad_with(config, |_| Response::new(open_body(vec![b"{\"Index\":1,", b"\"Events\":"])));
    let mut stream = nomad.events(None).await.unwrap();
    assert!(matches!(stream.next().await.unwrap_err(), StreamEnd::LineTooLong { limit: 8 }));
    let mut stream = streaming(|| open_body(vec![b"<html>\n"])).events(None).await.unwrap();
    assert!(matches!(stream.next().await.unwrap_err(), StreamEnd::NotNomad { .. }));
    let mut stream = streaming(|| open_body(vec![b"{\"Error\":{\"Message\":\"subscription closed by server\"}}\n"]))
        .events(None)
        .await
        .unwrap();
    assert!(matches!(stream.next().await.unwrap_err(), StreamEnd::NotNomad { why } if why.contains("closed by server")));
}

#[tokio::test(start_paused = true)]
async fn a_refused_stream_says_why() {
    let end = nomad(|_| respond(403, "Permission denied")).0.events(None).await.err().unwrap();
    assert!(matches!(end, StreamEnd::Refused(Error::PermissionDenied { .. })), "{end:?}");
    let broken = || futures::stream::iter([Ok("{}\n".into()), Err("reset".into())]).boxed();
    let mut stream = streaming(broken).events(None).await.unwrap();
    stream.next().await.unwrap();
    assert!(matches!(stream.next().await.unwrap_err(), StreamEnd::Broken(Error::Interrupted { .. })));
}
