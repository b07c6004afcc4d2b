//! A schema of the bench's own in a PostgreSQL, made anew and removed.

use tokio_postgres::{Client, NoTls};

pub struct Schema {
    /// Names the server and the schema.
    pub url: String,
    admin: Client,
}

const NAME: &str = "curfew_bench";

impl Schema {
    pub async fn make(server: &str) -> anyhow::Result<Schema> {
        let (admin, connection) = tokio_postgres::connect(server, NoTls).await?;
        tokio::spawn(connection);
        admin.batch_execute(&format!("DROP SCHEMA IF EXISTS {NAME} CASCADE; CREATE SCHEMA {NAME}")).await?;
        let mark = if server.contains('?') { '&' } else { '?' };
        Ok(Schema { url: format!("{server}{mark}options=-c%20search_path={NAME}"), admin })
    }

    pub async fn remove(self) -> anyhow::Result<()> {
        Ok(self.admin.batch_execute(&format!("DROP SCHEMA {NAME} CASCADE")).await?)
    }
}
