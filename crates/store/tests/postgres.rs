//! The store in PostgreSQL: the contract, and what only several processes on one server can show.

// Marked so that clippy knows the helpers for tests, too.
#[cfg(test)]
mod contract;
#[cfg(test)]
mod servers;

#[cfg(test)]
mod keeps {
    use std::sync::Arc;

    use curfew_core::operation::{Intervention, Kind, State};
    use curfew_store::{AuditFilter, Change, Created, OperationFilter, PostgresStore, Store};
    use futures::future::{join_all, try_join_all};
    use proptest::prelude::*;

    use crate::contract::fixtures::*;
    use crate::contract::{Opened, model};
    use crate::servers::clocked::Clocked;
    use crate::servers::{Schema, shared};

    async fn in_a_schema(rule: &str) -> Option<Opened> {
        let schema = Schema::new(&shared(rule)?).await;
        let store = PostgresStore::open(&schema.url).await.unwrap();
        let store = Clocked::new(store, schema.client().await).await;
        Some(Opened { store: Arc::new(store), keep: Box::new(schema) })
    }

    crate::contract!(in_a_schema, shared);

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_interleaving_agrees_with_the_model(acts in model::acts()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let Some(opened) = in_a_schema("any_interleaving_agrees_with_the_model").await else { return };
                model::agrees(opened.store, acts).await;
            });
        }
    }

    /// Two controllers, as far as the database can tell.
    async fn two(test: &str) -> Option<(Schema, [Arc<dyn Store>; 2])> {
        let schema = Schema::new(&shared(test)?).await;
        let (one, two) = tokio::join!(PostgresStore::open(&schema.url), PostgresStore::open(&schema.url));
        Some((schema, [one.unwrap(), two.unwrap()]))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_that_open_an_empty_schema_at_once_make_it_once() {
        let Some(server) = shared("many_that_open_an_empty_schema_at_once_make_it_once") else { return };
        let schema = Schema::new(&server).await;
        let opened = try_join_all((0..6).map(|_| PostgresStore::open(&schema.url))).await.unwrap();
        for store in opened {
            store.check().await.unwrap();
        }
        let versions = schema.client().await.query_one("SELECT count(*) FROM schema_version", &[]).await.unwrap();
        assert_eq!(versions.get::<_, i64>(0), 3, "a row for each step");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_to_two_controllers_make_one_stop() {
        let Some((_schema, stores)) = two("requests_to_two_controllers_make_one_stop").await else { return };
        let requests = (0..40u64).map(|i| {
            let store = Arc::clone(&stores[i as usize % 2]);
            tokio::spawn(async move {
                let joins = store.create(stop_within("a", i, 300 + i)).await.unwrap();
                let keyed = store.create(with_key(submit("b", 0), &format!("k-{}", i / 4), "body")).await.unwrap();
                (joins, keyed)
            })
        });
        let created = try_join_all(requests).await.unwrap();
        assert_eq!(created.iter().filter(|(joins, _)| matches!(joins, Created::New(_))).count(), 1);
        assert_eq!(created.iter().filter(|(_, keyed)| matches!(keyed, Created::New(_))).count(), 10);
        let live = stores[0].live(Kind::Stop).await.unwrap();
        assert_eq!((live.len(), live[0].revision), (1, 39));
        let rows = stores[1].audit(AuditFilter { limit: 10_000, ..AuditFilter::default() }).await.unwrap();
        assert!(rows.iter().map(|r| r.seq).eq(1..=50), "{} rows", rows.len());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_controllers_never_hold_one_row() {
        let Some((_schema, stores)) = two("two_controllers_never_hold_one_row").await else { return };
        let now = now();
        join_all((0..200).map(|i| stores[i % 2].create(submit(&format!("job-{i}"), 0)))).await;
        let workers = (0..8).map(|w| {
            let store = Arc::clone(&stores[w % 2]);
            tokio::spawn(async move {
                let mut done = 0;
                // Rows that another one is just taking are skipped, so an empty answer is not the end.
                while !store.live(Kind::Submit).await.unwrap().is_empty() {
                    for op in store.lease(&format!("h:{w}"), &wanted(&BOTH), &[], 3, now).await.unwrap() {
                        assert_eq!((op.lease.epoch, op.state), (1, State::Running));
                        let (result, audit) = succeeded(&op, now);
                        store.finish_step(&op, result, audit, now).await.unwrap();
                        done += 1;
                    }
                }
                done
            })
        });
        let done: usize = try_join_all(workers).await.unwrap().iter().sum();
        assert_eq!(done, 200, "each of them once");
    }

    /// On one thread both calls wait in the queue before the first group begins, so they share it.
    #[tokio::test]
    async fn an_end_and_a_beginning_on_one_target_share_a_group() {
        let Some((_schema, [store, _])) = two("an_end_and_a_beginning_on_one_target_share_a_group").await else { return };
        let first = store.create(stop("a", 0)).await.unwrap().operation().id;
        for round in 1..=3 {
            let op = lease_one(&store, "h:1", now()).await;
            let (result, audit) = succeeded(&op, now());
            let failed = curfew_store::StepResult { state: State::Failed, ..result };
            let (ended, next) = tokio::join!(store.finish_step(&op, failed, audit, now()), store.create(stop("a", round)));
            assert_eq!(ended.unwrap().state, State::Failed);
            assert!(matches!(next.unwrap(), Created::New(_)), "round {round}");
        }
        let op = lease_one(&store, "h:1", now()).await;
        let (result, audit) = succeeded(&op, now());
        let again = Intervention::Retry;
        let (ended, again) =
            tokio::join!(store.finish_step(&op, result, audit, now()), store.intervene(first, again, by("ops", 9)));
        assert_eq!((ended.unwrap().state, again.unwrap().state), (State::Succeeded, State::Queued));
    }

    #[tokio::test]
    async fn the_other_controller_hears_of_changes() {
        let Some((_schema, [one, two])) = two("the_other_controller_hears_of_changes").await else { return };
        let mut changes = two.changes();
        let id = one.create(stop("a", 0)).await.unwrap().operation().id;
        one.pause_kind(Kind::Stop, by("ops", 1)).await.unwrap();
        assert_eq!(changes.recv().await.unwrap(), Change::Operation { id, due: true });
        assert_eq!(changes.recv().await.unwrap(), Change::Kinds);
        assert!(two.lease("h:2", &wanted(&BOTH), &[id], 5, now()).await.unwrap().is_empty(), "paused everywhere");
    }

    /// What a real clock says; the store's own database decides by its own.
    fn now() -> curfew_core::Timestamp {
        use std::time::{Duration, UNIX_EPOCH};
        let since = Duration::from_secs(1_700_000_000).max(UNIX_EPOCH.elapsed().unwrap_or_default());
        curfew_core::Timestamp::from_micros(0) + since
    }

    /// Each caller sees instants by its own clock, however wrong that is; the database's decides.
    #[tokio::test]
    async fn a_caller_whose_clock_is_wrong_sees_its_own_time() {
        let Some((_schema, [store, _])) = two("a_caller_whose_clock_is_wrong_sees_its_own_time").await else { return };
        let op = store.create(stop("a", 500)).await.unwrap().operation().clone();
        assert_eq!(op.run_at, at(500), "years behind the database");
        let due = store.next_due(&BOTH, at(500)).await.unwrap().unwrap();
        assert!(due <= at(500) && due > at(440), "{due}");
        let op = store.lease("h:1", &wanted(&BOTH), &[], 1, at(501)).await.unwrap().remove(0);
        assert_eq!(op.lease.expires_at, Some(at(561)));
        let waiting = store.finish_step(&op, step(&op, State::Waiting, at(900)), vec![], at(502)).await.unwrap();
        assert_eq!(waiting.run_at, at(900));
        let due = store.next_due(&BOTH, at(502)).await.unwrap().unwrap();
        assert!(due > at(840) && due <= at(900), "{due}");
        assert!(store.lease("h:1", &wanted(&BOTH), &[], 1, at(5000)).await.unwrap().is_empty(), "the database decides");
    }

    /// A caller may have waited long for its answer, or have a wrong clock: neither moves what the trail says of the duty.
    #[tokio::test]
    async fn the_duty_is_told_by_the_databases_clock() {
        use std::time::Duration;
        let Some((_schema, [store, _])) = two("the_duty_is_told_by_the_databases_clock").await else { return };
        let began = now();
        let first = store.take_duty("h:1", Duration::ZERO, at(7)).await.unwrap().unwrap();
        let expired = first.expires_at.unwrap();
        assert!(expired + MINUTE > began && began + MINUTE > expired, "{expired} is the database's");
        store.take_duty("h:2", MINUTE, at(3)).await.unwrap().unwrap();
        let told = store.audit(Default::default()).await.unwrap().pop().unwrap().entry;
        let detail = serde_json::json!({ "epoch": 2, "previous_holder": "h:1", "expired_at": expired });
        assert_eq!(told.detail, detail);
        assert!(told.at >= expired, "taken when it had expired: {told:?}");
    }

    #[tokio::test]
    async fn a_text_that_postgresql_cannot_keep_fails_alone() {
        let Some((_schema, [store, _])) = two("a_text_that_postgresql_cannot_keep_fails_alone").await else { return };
        let odd = curfew_store::NewOperation { actor: "a\0b".into(), ..stop("odd", 0) };
        let requests = (0..20).map(|i| if i == 7 { odd.clone() } else { stop(&format!("job-{i}"), i) });
        let done = join_all(requests.map(|r| store.create(r))).await;
        assert_eq!(done.iter().filter(|d| d.is_err()).count(), 1);
        let said = done[7].as_ref().unwrap_err().to_string();
        assert!(said.contains("NUL"), "{said}");
        assert_eq!(store.operations(OperationFilter::default()).await.unwrap().len(), 19);
    }
}
