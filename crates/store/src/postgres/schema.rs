//! The tables, and the way to them from every earlier version. Forwards only, one controller at a time.

use tokio_postgres::{Client, Error};

use super::trouble::{self, Trouble};

/// One step each; a step that was released is never changed again. The schema's version is the number of steps.
const MIGRATIONS: &[&str] = &[include_str!("schema/001.sql"), include_str!("schema/002.sql"), include_str!("schema/003.sql")];

type Done<T> = Result<T, Trouble>;

/// What every connection of this store needs to know about the place it leads to.
pub(super) struct Settled {
    pub(super) channel: String,
    pub(super) kinds_lock: i64,
}

/// Brings an empty or an older schema to this version. Looks before it changes anything.
pub(super) async fn migrate(client: &Client, place: &str) -> Done<Settled> {
    let failed = |query| move |e: Error| trouble::sql(place, query, e);
    let row = client
        .query_one(
            "SELECT current_schema()::text AS schema, current_setting('search_path') AS path, \
             current_setting('synchronous_commit') AS durable, 'curfew_' || md5(current_schema()::text) AS channel, \
             hashtextextended('curfew kinds ' || current_schema()::text, 0) AS kinds_lock",
            &[],
        )
        .await
        .map_err(failed("schema"))?;
    let Some(schema) = row.get::<_, Option<String>>("schema") else {
        let path: String = row.get("path");
        let what =
            format!("{place} has no schema of the search_path {path}; make it with: CREATE SCHEMA, or leave search_path out");
        return Err(Trouble::said(what, false));
    };
    if ["off", "local"].contains(&row.get::<_, &str>("durable")) {
        tracing::warn!(
            place,
            synchronous_commit = row.get::<_, &str>("durable"),
            "what this database acknowledges may be lost with its machine: set synchronous_commit = on"
        );
    }
    let done = apply(client, place, &schema).await;
    if done.is_err() {
        // The first error says why; a connection that is gone rolls back by itself.
        let _ = client.batch_execute("ROLLBACK").await;
    }
    done?;
    Ok(Settled { channel: row.get("channel"), kinds_lock: row.get("kinds_lock") })
}

async fn apply(client: &Client, place: &str, schema: &str) -> Done<()> {
    let failed = |e: Error| trouble::sql(place, "migrate", e);
    client.batch_execute("BEGIN").await.map_err(failed)?;
    client
        .execute("SELECT pg_advisory_xact_lock(hashtextextended('curfew schema ' || current_schema()::text, 0))", &[])
        .await
        .map_err(failed)?;
    let found = version(client, place, schema).await?;
    for (i, step) in MIGRATIONS.iter().enumerate().skip(found) {
        client.batch_execute(step).await.map_err(failed)?;
        let number = i32::try_from(i + 1).unwrap_or(i32::MAX);
        let sql = "INSERT INTO schema_version (version, made_by) VALUES ($1, $2)";
        client.execute(sql, &[&number, &env!("CARGO_PKG_VERSION")]).await.map_err(failed)?;
    }
    // A kind that this version brought has a row to lock.
    let kinds: Vec<&str> = curfew_core::operation::Kind::ALL.map(|k| k.as_str()).into();
    let sql = "INSERT INTO kinds (kind) SELECT unnest($1::text[]) ON CONFLICT (kind) DO NOTHING";
    client.execute(sql, &[&kinds]).await.map_err(failed)?;
    client.batch_execute("COMMIT").await.map_err(failed)?;
    if found < MIGRATIONS.len() {
        tracing::info!(place, from = found, to = MIGRATIONS.len(), "the database has a new schema");
    }
    Ok(())
}

async fn version(client: &Client, place: &str, schema: &str) -> Done<usize> {
    let failed = |e: Error| trouble::sql(place, "schema_version", e);
    let sql = "SELECT count(*) FILTER (WHERE tablename = 'schema_version') AS ours, \
               string_agg(tablename::text, ', ' ORDER BY tablename) FILTER (WHERE tablename = ANY($2)) AS taken \
               FROM pg_tables WHERE schemaname = $1";
    let tables = vec!["operations", "idempotency_keys", "claims", "clocks", "kinds", "audit", "audit_end", "checks", "tokens"];
    let row = client.query_one(sql, &[&schema, &tables]).await.map_err(failed)?;
    let (ours, taken): (i64, Option<String>) = (row.get("ours"), row.get("taken"));
    if ours == 0 {
        let Some(taken) = taken else { return Ok(0) };
        let what = format!(
            "{place} has tables of another program where curfew's belong ({taken} in schema {schema}); give curfew a database or a \
             schema of its own: ?options=-c%20search_path=curfew"
        );
        return Err(Trouble::said(what, false));
    }
    let sql = "SELECT version, made_by FROM schema_version ORDER BY version DESC LIMIT 1";
    let Some(row) = client.query_opt(sql, &[]).await.map_err(failed)? else { return Ok(0) };
    let (found, made_by): (i32, String) = (row.get("version"), row.get("made_by"));
    let known = MIGRATIONS.len();
    usize::try_from(found).ok().filter(|v| *v <= known).ok_or_else(|| {
        let what = format!(
            "{place} was made by a newer curfew ({made_by}): schema {found}, this one knows {known}; upgrade curfew, or name \
             another --database"
        );
        Trouble::said(what, false)
    })
}
