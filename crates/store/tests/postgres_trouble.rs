//! What goes wrong with a server, each time a sentence with the place and the way out, and never the password.

#[cfg(test)]
#[path = "contract/fixtures.rs"]
#[expect(dead_code, reason = "shared with the contract, which uses all of it")]
mod fixtures;
#[cfg(test)]
#[path = "servers/own.rs"]
mod own;

#[cfg(test)]
mod trouble {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;
    use std::sync::Arc;
    use std::time::Duration;

    use curfew_core::OpId;
    use curfew_store::{Change, PostgresStore, Store, StoreError};
    use tokio_postgres::{Client, NoTls};

    use crate::fixtures::*;
    use crate::own::{Server, ok, user};

    async fn client(url: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Asks again and again until the answer is there; the last refusal is told when it never is.
    async fn eventually<T, E: std::fmt::Debug>(mut ask: impl AsyncFnMut() -> Result<T, E>) -> T {
        let mut last = None;
        let asking = async {
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            loop {
                tick.tick().await;
                match ask().await {
                    Ok(found) => return found,
                    Err(e) => last = Some(e),
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), asking).await {
            Ok(found) => found,
            Err(_) => panic!("not within a minute; the last answer was {last:?}"),
        }
    }

    async fn open(url: &str) -> Arc<dyn Store> {
        PostgresStore::open(url).await.unwrap()
    }

    /// The sentence of a refused open; whatever it says and shows, the password is not in it.
    async fn refused(url: &str) -> String {
        let e = PostgresStore::open(url).await.err().unwrap_or_else(|| panic!("{url} is refused"));
        let shown = format!("{e} {e:?}");
        assert!(!shown.contains("sesame"), "the password is in it: {shown}");
        e.to_string()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_restarts_in_the_middle_loses_nothing() {
        let Some(server) = Server::start("a_server_that_restarts_in_the_middle_loses_nothing") else { return };
        let store = open(&server.url()).await;
        let mut changes = store.changes();
        let mut acknowledged: Vec<OpId> = Vec::new();
        for i in 0..50 {
            acknowledged.push(store.create(stop(&format!("before-{i}"), i)).await.unwrap().operation().id);
        }
        server.down("immediate");
        let away = store.create(stop("away", 0)).await.unwrap_err();
        assert!(matches!(&away, StoreError::Database { transient: true, .. }), "{away:?}");
        let said = away.to_string();
        assert!(said.contains(&format!("at 127.0.0.1:{}", server.port)) && !said.contains("sesame"), "{said}");
        assert!(store.check().await.is_err(), "readiness tells");
        server.up();
        acknowledged.push(eventually(async || store.create(stop("after", 0)).await).await.operation().id);
        store.check().await.unwrap();
        for id in acknowledged {
            assert!(store.operation(id).await.unwrap().is_some(), "{id} was acknowledged");
        }
        eventually(async || match changes.recv().await {
            Ok(Change::Missed) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        let id = store.create(stop("heard", 0)).await.unwrap().operation().id;
        eventually(async || match changes.recv().await {
            Ok(Change::Operation { id: theirs, .. }) if theirs == id => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        store.close().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cut_connections_are_made_anew_unseen() {
        let Some(server) = Server::start("cut_connections_are_made_anew_unseen") else { return };
        let store = open(&server.url()).await;
        let mut changes = store.changes();
        let admin = client(&server.url()).await;
        for round in 0..5 {
            let id = store.create(stop(&format!("job-{round}"), round)).await.unwrap().operation().id;
            let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                       WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
            admin.query_one(cut, &[]).await.unwrap();
            // Nobody sees an error: nothing was under way that could not be done again.
            let op = store.operation(id).await.unwrap().unwrap();
            assert_eq!(op.id, id);
            store.create(stop(&format!("again-{round}"), round)).await.unwrap();
            assert_eq!(store.lease("h:1", &wanted(&BOTH), &[id], 1, at(0)).await.unwrap().len(), 1);
            eventually(async || match changes.recv().await {
                Ok(Change::Missed) => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
        }
        store.close().await.unwrap();
    }

    /// A controller that is stopped (SIGSTOP) in the middle of a transaction holds locks; the server ends it, and the others go on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_session_that_sleeps_in_a_transaction_is_ended() {
        let Some(server) = Server::start("a_session_that_sleeps_in_a_transaction_is_ended") else { return };
        let store = open(&server.url()).await;
        let limit = "-c idle_in_transaction_session_timeout=3s";
        let sleeper = client(&format!("{}?options={}", server.url(), limit.replace(' ', "%20"))).await;
        sleeper.batch_execute("BEGIN; UPDATE audit_end SET seq = seq").await.unwrap();
        store.create(stop("a", 0)).await.expect("waits for it, and goes on");
        let mine = client(&server.url()).await;
        let sql = "SELECT count(DISTINCT current_setting('idle_in_transaction_session_timeout')) FROM pg_stat_activity \
                   WHERE application_name = 'curfew'";
        assert_eq!(mine.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 1, "curfew's sessions are there to be ended");
        store.close().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_not_curfews_or_too_new_is_left_alone() {
        let Some(server) = Server::start("what_is_not_curfews_or_too_new_is_left_alone") else { return };
        let admin = client(&server.url()).await;
        let in_schema = |name: &str| format!("{}?options=-c%20search_path={name}", server.url());
        let said = refused(&in_schema("nowhere")).await;
        assert!(said.contains("no schema of the search_path nowhere; make it with: CREATE SCHEMA"), "{said}");

        admin.batch_execute("CREATE SCHEMA theirs; CREATE TABLE theirs.operations (price INTEGER)").await.unwrap();
        let said = refused(&in_schema("theirs")).await;
        assert!(said.contains("tables of another program") && said.contains("operations in schema theirs"), "{said}");

        admin.batch_execute("CREATE SCHEMA newer").await.unwrap();
        open(&in_schema("newer")).await.close().await.unwrap();
        admin.batch_execute("INSERT INTO newer.schema_version VALUES (7, '9.1.0')").await.unwrap();
        let said = refused(&in_schema("newer")).await;
        assert!(said.ends_with(
            "was made by a newer curfew (9.1.0): schema 7, this one knows 3; upgrade curfew, or name another --database"
        ));

        // Its own schema, beside the others' tables.
        admin.batch_execute("CREATE SCHEMA ours").await.unwrap();
        let store = open(&in_schema("ours")).await;
        store.create(stop("a", 0)).await.unwrap();
        store.close().await.unwrap();
        let count = admin.query_one("SELECT count(*) FROM ours.operations", &[]).await.unwrap();
        assert_eq!(count.get::<_, i64>(0), 1);
        let public = admin.query_one("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", &[]).await.unwrap();
        assert_eq!(public.get::<_, i64>(0), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_refused_login_has_its_sentence() {
        let Some(server) = Server::start("each_refused_login_has_its_sentence") else { return };
        client(&server.url()).await.batch_execute("ALTER USER curfew PASSWORD 'open'").await.unwrap();
        std::fs::write(server.data().join("pg_hba.conf"), "host all all 127.0.0.1/32 scram-sha-256\n").unwrap();
        server.reload();
        let place = format!("the PostgreSQL database \"postgres\" at 127.0.0.1:{}", server.port);
        // A reload takes a moment.
        let said = eventually(async || match PostgresStore::open(&server.url()).await {
            Ok(_) => Err("it still trusts everybody"),
            Err(e) => Ok(format!("{e} {e:?}")),
        })
        .await;
        assert!(
            said.starts_with(&format!("{place} refused the login: password authentication failed for user \"curfew\"")),
            "{said}"
        );
        assert!(said.contains("pg_hba.conf") && !said.contains("sesame"), "{said}");

        let good = server.url().replace("sesame", "open");
        open(&good).await.close().await.unwrap();
        let said = refused(&good.replace("/postgres", "/nothing").replace("postgres:/nothing", "postgres:/")).await;
        assert!(said.contains("database \"nothing\" does not exist; make it with: createdb"), "{said}");
        let said = refused(&format!("{}?sslmode=require", server.url())).await;
        assert!(
            said.starts_with(&format!("{place}: the encrypted connection failed")) && said.contains("sslmode=disable"),
            "{said}"
        );

        server.down("fast");
        let said = refused(&server.url()).await;
        assert_eq!(said, format!("{place} cannot be reached: nobody listens there; is it running, and is that its address?"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn tls_is_checked_and_used() {
        let Some(server) = Server::start("tls_is_checked_and_used") else { return };
        let (cert, key) = (server.data().join("server.crt"), server.data().join("server.key"));
        let mut made = Command::new("openssl");
        made.args(["req", "-new", "-x509", "-days", "2", "-nodes", "-subj", "/CN=localhost", "-addext"]);
        made.args(["subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE", "-out"]);
        made.arg(&cert).arg("-keyout").arg(&key);
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("SKIPPED tls_is_checked_and_used: openssl, which makes its certificate, is not installed");
            return;
        }
        ok(&mut made);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        if rustix::process::geteuid().is_root() {
            ok(Command::new("chown").arg(user()).arg(&cert).arg(&key));
        }
        client(&server.url()).await.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
        server.down("fast");
        server.up();
        let url = server.url().replace("127.0.0.1", "localhost");
        let said = refused(&format!("{url}?sslmode=require")).await;
        assert!(said.contains("the encrypted connection failed") && said.contains("sslrootcert=FILE"), "{said}");
        let rooted = format!("{url}?sslmode=require&sslrootcert={}", cert.display());
        let store = open(&rooted).await;
        store.create(stop("a", 0)).await.unwrap();
        let admin = client(&server.url()).await;
        let sql = "SELECT count(*) FILTER (WHERE ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                   WHERE application_name = 'curfew'";
        let row = admin.query_one(sql, &[]).await.unwrap();
        assert!(row.get::<_, i64>(0) > 0 && row.get::<_, i64>(0) == row.get::<_, i64>(1), "each connection is encrypted");
        store.close().await.unwrap();
        // The name counts, too.
        let said = refused(&rooted.replace("localhost", "127.0.0.1")).await;
        assert!(said.contains("the encrypted connection failed"), "{said}");
        let said = refused(&format!("{url}?sslrootcert=/nowhere/ca.pem")).await;
        assert!(said.contains("sslrootcert /nowhere/ca.pem"), "{said}");
    }

    #[tokio::test]
    async fn a_url_that_says_nothing_useful_is_refused_without_its_password() {
        for (url, why) in [
            ("postgres://curfew:ses@me@sesame/db", "more than one @"),
            ("postgres://curfew:sesame@/db", "names no host"),
            ("postgres://127.0.0.1/db", "names no user"),
            ("postgres://curfew:sesame@h:port/db", "cannot be read"),
            ("postgres://curfew:sesame@h/db?sslmode=maybe", "sslmode"),
            ("postgres://curfew:sesame@h/db?colour=sesame", "cannot be read"),
        ] {
            let said = refused(url).await;
            assert!(said.contains(why) && said.contains("write postgres://"), "{url}: {said}");
        }
        for url in ["mysql://curfew:sesame@h/db", "sqlite:", "curfew.db", "postgres:curfew:sesame@h"] {
            let e = curfew_store::open(url).await.err().unwrap();
            assert!(matches!(e, StoreError::BadUrl(_)) && !format!("{e:?}").contains("sesame"), "{e:?}");
        }
    }
}
