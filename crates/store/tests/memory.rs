//! The store in memory: the contract, the model, and paused time.

// Marked so that clippy knows the helpers for tests, too.
#[cfg(test)]
mod contract;

#[cfg(test)]
mod keeps {
    use std::sync::Arc;
    use std::time::Duration;

    use curfew_store::{MemoryStore, Store};
    use proptest::prelude::*;

    use crate::contract::fixtures::*;
    use crate::contract::{Opened, model};

    async fn empty(_rule: &str) -> Option<Opened> {
        Some(Opened { store: MemoryStore::new(), keep: Box::new(()) })
    }

    crate::contract!(empty, shared);

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_interleaving_agrees_with_the_model(acts in model::acts()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { model::agrees(MemoryStore::new(), acts).await });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_call_lets_paused_time_pass() {
        let store: Arc<dyn Store> = MemoryStore::new();
        let began = tokio::time::Instant::now();
        for i in 0..50 {
            let written = tokio::time::timeout(Duration::from_millis(1), store.create(stop(&format!("job-{i}"), i))).await;
            written.expect("no time passes").unwrap();
        }
        assert_eq!(tokio::time::Instant::now(), began);
    }
}
